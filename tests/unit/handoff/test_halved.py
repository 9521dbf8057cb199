"""A language model's export in half the bytes: what it says of that, what it costs, and when it is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rtrain
from recipes.dlrm_movielens import debug as dlrm
from recipes.gpt_stdlib import debug
from rtrain.errors import ConfigError
from rtrain.export.artifact import apart_of
from rtrain.export.weights import save
from rtrain.release.gate import Gate
from rtrain.release.quality import lost_to_bits
from rtrain.release.servable import Faithful, Servable

pytest.importorskip("transformers")


def trained(folder: Path, name: str, **more: Any) -> Path:
    changes = {"name": name, "storage": str(folder), "duration.steps": 20, "optim.lr": 5e-3, "cluster.workers": 1}
    changes |= {"handoff.rows": 8, "tracking.to": (), "optim.schedule.warmup_steps": 1} | more
    rtrain.train(rtrain.override(debug(), changes), launcher="inline", quiet=True)
    return folder / name / "export"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export as it was trained."""
    return trained(tmp_path_factory.mktemp("halved"), "whole")


def head_of(export: Path) -> dict[str, Any]:
    head: dict[str, Any] = json.loads((export / "export.json").read_text())
    return head


def weights(export: Path) -> dict[str, torch.Tensor]:
    return {name: x for path in export.glob("*.safetensors") for name, x in load_file(path).items()}


@pytest.mark.parametrize("kept", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_it_is_the_trained_one_rounded_and_says_what_that_costs(kept: str, whole: Path, tmp_path: Path) -> None:
    from rtrain.language.engine import Engine
    from rtrain.language.model import load
    from rtrain.language.sampling import Sampling

    export = trained(tmp_path, "half", **{"handoff.weights": kept, "handoff.tolerance": 0.01})
    mine, theirs = weights(export), weights(whole)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(x, theirs[name].to(getattr(torch, kept))) for name, x in mine.items())
    head, stated = head_of(export), head_of(export)["weights"]
    assert {path.name for path in export.iterdir()} == {*head["files"], "export.json"}, "nothing is left of before"
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in export.iterdir()), "others read it too"
    assert stated["kept"] == kept and stated["bytes"][0] == 2 * stated["bytes"][1] == sum(
        x.nbytes for x in theirs.values()
    )
    recorded = json.loads((export.parent / "predictions.json").read_text())["predictions"]
    tokens = len(recorded) * debug().data.context  # type: ignore[attr-defined]
    assert stated["rows"] == len(recorded) and stated["loss"][0] == pytest.approx(sum(recorded) / tokens, abs=1e-5)
    assert 0 < stated["difference"] < 0.01 and apart_of(head) == 2 * stated["difference"]
    assert abs(stated["loss"][1] - stated["loss"][0]) < 0.01 and len(stated["ms_token"]) == 2
    lost, said = lost_to_bits("loss", head, higher=False)
    assert lost == max(0.0, stated["loss"][1] - stated["loss"][0]) and f"{kept} weights take {lost:.5f} more" in said
    verdict = Gate(checks=(Servable(), Faithful())).judge(str(export.parent))
    assert verdict.passed and 1e-5 < verdict.decisions[1].numbers["difference"] <= stated["difference"] * 2, str(
        verdict
    )
    language = load(str(export), device="cpu")
    assert language.model.dtype == getattr(torch, kept)
    engine = Engine(language, lanes=2)
    answer = engine.answer("def ", Sampling(max_tokens=8, temperature=0))
    ids = torch.tensor([language.ids("def ")])
    said_by_it = language.model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert [token.id for token in answer.tokens] == said_by_it.tolist()[: len(answer.tokens)]
    engine.close()


def test_one_that_costs_more_than_may_be_stays_as_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(tensors: dict[str, torch.Tensor], path: Path) -> None:
        save({name: 3 * x if "lm_head" in name else x for name, x in tensors.items()}, path)

    monkeypatch.setattr("rtrain.handoff.halved.save", spoiled)
    with pytest.raises(ConfigError, match=r"handoff.weights: bfloat16 costs .* of loss .* Weights stay as trained"):
        trained(tmp_path, "half", **{"handoff.weights": "bfloat16"})
    export = tmp_path / "half" / "export"
    assert "weights" not in head_of(export) and {x.dtype for x in weights(export).values()} == {torch.float32}
    assert {path.name for path in export.iterdir()} == {*head_of(export)["files"], "export.json"}


def test_trained_again_it_is_as_trained_again(tmp_path: Path) -> None:
    half = {"handoff.weights": "bfloat16", "handoff.tolerance": 0.1}
    export = trained(tmp_path, "run", **half, **{"duration.steps": 5})
    assert "weights" in head_of(export)
    trained(tmp_path, "run", **{"duration.steps": 10})
    assert "weights" not in head_of(export) and {x.dtype for x in weights(export).values()} == {torch.float32}
    assert {path.name for path in export.glob("model-*")} == {"model-00001-of-00001.safetensors"}


def test_what_cannot_be_is_said_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="handoff.weights: expected one of 'trained', .* got 'int4'"):
        rtrain.override(debug(), {"handoff.weights": "int4"})
    with pytest.raises(ConfigError, match="handoff.weights: bfloat16 is of language models, and DLRM is another"):
        rtrain.train(
            rtrain.override(dlrm(), {"handoff.weights": "bfloat16", "storage": str(tmp_path)}),
            launcher="inline", quiet=True,
        )  # fmt: skip
