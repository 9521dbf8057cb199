"""Tables in fewer bits: what a row becomes, what a real run's export then answers and states, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recipes import two_tower_movielens
from rtrain.errors import ConfigError
from rtrain.export import quantised as by_bits
from rtrain.export.artifact import Predictor
from rtrain.export.formats import refuse_export
from rtrain.nn.gathered import quantised, rows_of, scale_of, weights_of
from rtrain.nn.tables import Table
from rtrain.release.gate import Gate
from rtrain.release.servable import Faithful, Servable
from rtrain.run import Handoff
from tests.unit.export.test_program import DIM, ITEMS, MODELS, asked_of, folder, head_of, run_of
from tests.unit.training.jobs import train

__all__ = ["folder"]
WIDE = 100.0
"""A tolerance that refuses nothing: these runs learn for 12 steps."""


@pytest.mark.parametrize("bits", [8, 4])
def test_a_weight_is_off_by_half_a_step_at_most(bits: int) -> None:
    draw = torch.Generator().manual_seed(0)
    table = Table(name="t", rows=50, dim=16, features=("f",))
    rows = torch.randn(50, 16, generator=draw) * torch.logspace(-6, 3, 50).unsqueeze(1)
    rows[7] = 0.25  # a row of one number is exact
    numbers, scale = quantised(rows, bits)
    assert numbers.dtype == torch.uint8 and numbers.shape == (50, 16 * bits // 8) and scale.shape == (50, 2)
    ids = torch.tensor([[49, 7], [0, 3]])
    found = rows_of({weights_of(table): numbers, scale_of(table): scale}, table, ids)
    step = (rows.amax(1) - rows.amin(1)) / (2**bits - 1)
    # Half a step, and the roundings of the way there and back, of numbers as large as the row's largest.
    allowed = step / 2 + 4 * torch.finfo(torch.float32).eps * rows.abs().amax(1)
    assert ((found - rows[ids]).abs() <= allowed[ids].unsqueeze(-1)).all()
    assert torch.equal(found[0, 1], rows[7]) and (found[0, 0] != rows[49]).any()


@pytest.mark.parametrize(
    ("name", "kept", "least"),
    [
        ("din", "int4", 2.6),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("din", "float16", 2.0), ("din", "int8", 2.0), ("dlrm", "float16", 2.0), ("dlrm", "int8", 2.0),
                ("dlrm", "int4", 2.6),
            )
        ),
    ],
)  # fmt: skip
def test_an_export_is_smaller_and_answers_as_it_states(name: str, kept: Any, least: float, folder: Path) -> None:
    """8 numbers of 32 bits become 8 or 4 bytes and a scale of 8; the program takes them as they lie, as torch does."""
    run = run_of(folder, f"{name}-{kept}", MODELS[name], program="onnx", tables=kept, tolerance=WIDE)
    export = Path(str(train(run)["export"]))
    head = head_of(export)
    stated = head["tables"]
    before, after = stated["bytes"]
    assert before == (50 + ITEMS) * DIM * 4 and before / after >= least
    assert stated["kept"] == kept and stated["rows"] == 1250 and len(stated["auc"]) == len(stated["ms_1"]) == 2
    assert 0 < stated["difference"] < {"float16": 1e-4, "int8": 1e-3, "int4": 2e-2}[kept]
    weights = {path.name for path in export.glob("*.safetensors")}
    assert weights == {n for n in head["files"] if n.endswith("s")} and all(kept in n for n in weights)
    assert head["program"]["kind"] == "onnx" and head["program"]["difference"] <= 1e-5 and head["format"] == 3
    rows, said = asked_of(run)
    for predictor in (Predictor(str(export)), Predictor(str(export), program="eager")):
        apart = np.abs(np.array(predictor.predict(rows)) - said).max()
        assert 0 < apart <= stated["difference"] + 1e-5
    verdict = Gate(checks=(Servable(), Faithful())).judge(run.folder)
    assert verdict.passed, verdict.decisions


def test_a_loss_beyond_the_tolerance_is_refused_and_the_export_is_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rows in which large is small."""

    def turned(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        numbers, scale = quantised(rows, bits)
        return 255 - numbers, scale * 100

    monkeypatch.setattr(by_bits, "quantised", turned)
    run = run_of(folder, "too-few", MODELS["dlrm"], tables="int4", tolerance=0.0)
    with pytest.raises(
        ConfigError, match=r"int4 costs 0\.\d+ of \w+ .* on 1,250 test rows, and handoff.tolerance is 0"
    ):
        train(run)
    export = Path(run.folder) / "export"
    assert "tables" not in head_of(export) and [p.name for p in export.glob("*.safetensors")] == [
        "model-00000.safetensors"
    ]
    plain = run_of(folder, "as-trained", MODELS["dlrm"])
    said = Predictor(str(train(plain)["export"]))
    rows, _ = asked_of(plain)
    monkeypatch.undo()
    assert Predictor(str(export)).predict(rows) == said.predict(rows)


def test_answers_that_are_no_numbers_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of weights that float16 cannot hold, whatever the tolerance."""
    monkeypatch.setattr(Tensor, "half", lambda x: (x * 1e9).to(torch.float16))
    run = run_of(folder, "too-large", MODELS["dlrm"], tables="float16", tolerance=float("inf"))
    with pytest.raises(ConfigError, match=r"float16 (makes answers that are no numbers \(|costs nan of )"):
        train(run)
    assert "tables" not in head_of(Path(run.folder) / "export")


def test_what_cannot_be_is_one_line() -> None:
    with pytest.raises(ConfigError, match="int8 is of models that score rows, and TwoTower is another. Leave it out"):
        refuse_export(replace(two_tower_movielens.run(), handoff=Handoff(tables="int8")), None)
    with pytest.raises(ConfigError, match="handoff.tables: must be trained, float16, int8 or int4, got 'int2'"):
        Handoff(tables="int2")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="handoff.tolerance: must be at least 0, got -1"):
        Handoff(tolerance=-1.0)
