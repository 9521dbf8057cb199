"""A dense part without its least weights: what is left out, what an export then answers and states, refusals."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recipes import two_tower_movielens
from rtrain.errors import CheckpointError, ConfigError
from rtrain.export.artifact import Predictor, apart_of
from rtrain.export.formats import refuse_export
from rtrain.export.quantised import quantise
from rtrain.export.sparse import KEPT, VALUES, packed, pruned, unpacked
from rtrain.release.gate import Gate
from rtrain.release.servable import Faithful, Servable
from rtrain.run import Handoff
from rtrain.storage import Folder
from tests.unit.export.test_program import MODELS, asked_of, cache, folder, head_of, run_of
from tests.unit.training.jobs import train

__all__ = ["cache", "folder"]
WIDE = 100.0
"""A tolerance that refuses nothing: these runs learn for 12 steps."""


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_the_least_go_and_come_back_as_zeros(share: float) -> None:
    x = torch.randn(7, 13, generator=torch.Generator().manual_seed(0))
    left = pruned(x, share)
    gone = left == 0
    assert int(gone.sum()) == int(share * 91) and torch.equal(left[~gone], x[~gone])
    assert share == 0 or x[gone].abs().max() <= x[~gone].abs().min()
    stored = packed("a.weight", left) | {"bias": x[0]}
    assert stored["a.weight" + KEPT].shape == (12,) and stored["a.weight" + VALUES].shape == (91 - int(gone.sum()),)
    found = unpacked(stored, {"a.weight": x.shape})
    assert found.keys() == {"a.weight", "bias"} and torch.equal(found["a.weight"], left)


def test_what_does_not_fit_is_refused() -> None:
    stored = packed("a", torch.ones(4, 4))
    with pytest.raises(CheckpointError, match="a is no weight of its model"):
        unpacked(stored, {})
    with pytest.raises(CheckpointError, match=r"a has bits of another shape than \(4, 5\)"):
        unpacked(stored, {"a": torch.Size((4, 5))})
    with pytest.raises(CheckpointError, match="a has 3 values for 16. Export the run again"):
        unpacked(stored | {"a" + VALUES: torch.ones(3)}, {"a": torch.Size((4, 4))})


def test_a_weight_of_a_model_may_be_called_as_what_is_packed() -> None:
    x = torch.ones(2, 2)
    own = {"bank" + VALUES: x, "bank" + KEPT: 2 * x, "b": x}
    found = unpacked({"bank" + VALUES: x, "bank" + KEPT: 2 * x} | packed("b", x), {name: x.shape for name in own})
    assert found.keys() == own.keys() and all(torch.equal(found[name], own[name]) for name in own)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("din", {}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("dlrm", {"tables": "int8"}), ("dcnv2", {"program": "onnx"}), ("mmoe", {}), ("ensemble", {}))
        ),
    ],
)
def test_an_export_is_smaller_and_answers_as_it_states(name: str, more: Any, folder: Path) -> None:
    whole = run_of(folder, f"{name}-whole", MODELS[name])
    run = run_of(folder, f"{name}-pruned", MODELS[name], pruned=0.8, tolerance=WIDE, **more)
    before, after = (Predictor(str(train(one)["export"]), program="eager") for one in (whole, run))
    head = head_of(f"{run.folder}/export")
    stated = head["pruned"]
    assert (stated["kept"], stated["share"], head["format"]) == ("pruned", 0.8, 4)
    assert stated["bytes"][0] > 2 * stated["bytes"][1] and stated["rows"] > 1000 and len(stated["auc"]) == 2
    tables = {key for key in before.model.state_dict() if key.startswith("tables.")}
    for key, x in before.model.state_dict().items():
        left = after.model.state_dict()[key]
        if key not in tables and x.dim() > 1 and x.is_floating_point():
            assert int((left == 0).sum()) >= int(0.8 * x.numel()) and torch.equal(left[left != 0], x[left != 0])
        elif key not in tables:
            assert torch.equal(left, x)
    files = [load_file(path) for path in Path(f"{run.folder}/export").glob("model-*.safetensors")]
    assert any(key.endswith(KEPT) for file in files for key in file) and len(files) == len(list(head["files"])) - (
        "program.onnx" in head["files"]
    )
    rows, said = asked_of(run)
    apart = np.abs(np.array(Predictor(f"{run.folder}/export").predict(rows)) - said).max()
    assert 1e-5 < apart <= apart_of(head) + 1e-5
    verdict = Gate(checks=(Servable(), Faithful())).judge(run.folder)
    assert verdict.passed, verdict.decisions


def test_what_costs_too_much_is_not_taken(folder: Path) -> None:
    run = run_of(folder, "pruned-away", MODELS["dlrm"], pruned=0.99, tolerance=0.0)
    with pytest.raises(ConfigError, match=r"handoff.pruned: 0.99 costs .* of auc .*as trained. .*, or leave less out"):
        train(run)
    export = Path(run.folder) / "export"
    assert "pruned" not in head_of(export) and Predictor(str(export)).predict(asked_of(run)[0])


def test_the_tolerance_is_of_all_parts_together(folder: Path) -> None:
    run = run_of(folder, "both", MODELS["dlrm"], pruned=0.8, tolerance=WIDE)
    train(run)
    export = Folder(f"{run.folder}/export")
    head = head_of(export.uri)
    export.write_json("export.json", head | {"pruned": head["pruned"] | {"auc": [50.5, 0.5]}})
    fewer = replace(run, handoff=replace(run.handoff, tables="int4", tolerance=10.0))
    said = r"handoff.tables: int4 costs -?0\.\d+ of auc .*, beside 50.00000 that pruned cost, on"
    with pytest.raises(ConfigError, match=said):
        quantise(fewer, export.uri, run.data.open(), lambda: None)
    assert "tables" not in head_of(export.uri)


def test_what_cannot_be_is_one_line() -> None:
    for wrong in (1.0, -0.1, float("nan")):
        with pytest.raises(ConfigError, match="handoff.pruned: must be a share, from 0 to below 1, got"):
            Handoff(pruned=wrong)
    run = replace(two_tower_movielens.run(), handoff=Handoff(pruned=0.5))
    with pytest.raises(ConfigError, match="handoff.pruned: 0.5 is of models that score rows, and TwoTower is another"):
        refuse_export(run, None)
