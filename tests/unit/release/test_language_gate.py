"""The gate on language models: a worse one, an altered one, other tokens; and what registry and card say of one."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import rtrain
from recipes.gpt_stdlib import debug
from rtrain import Calibrated, Faithful, NotWorse, SameRequests, Servable, Within
from rtrain.errors import CheckpointError
from rtrain.export.artifact import Predictor
from rtrain.export.tokenizer import TEMPLATE
from rtrain.release.card import card
from rtrain.release.finished import Finished
from rtrain.release.gate import Gate
from rtrain.release.judged import Judged
from rtrain.release.registry import Registry

ROWS = 30
CHANGES = {"handoff.rows": ROWS, "cluster.workers": 1, "tracking.to": (), "optim.schedule.warmup_steps": 1}


def trained(folder: Path, name: str, **more: object) -> str:
    changes = CHANGES | {"name": name, "storage": str(folder)} | more
    result = rtrain.train(rtrain.override(debug(), changes), launcher="inline", quiet=True)
    assert result is not None
    return f"{folder}/{name}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("language_gate")
    trained(folder, "good", **{"duration.steps": 60, "optim.lr": 5e-3})
    trained(folder, "bad", **{"duration.steps": 2})
    trained(folder, "short", **{"duration.steps": 2, "data.context": 16})
    return folder


def judged(folder: Path, candidate: str, champion: str = "") -> Judged:
    of = [Finished.read(f"{folder}/{name}") for name in (candidate, champion) if name]
    return Judged(of[0], of[1] if champion else None)


def test_a_good_one_passes_and_is_registered(folder: Path, tmp_path: Path) -> None:
    verdict = Gate().judge(f"{folder}/good", f"{folder}/bad")
    assert verdict.passed, str(verdict)
    servable, faithful, _, better, *_ = verdict.decisions
    assert servable.numbers["answered"] == ROWS and "losses of rows differ" in faithful.said
    assert 0 <= faithful.numbers["difference"] < 1e-5
    assert better.numbers["high"] < -0.5 and f"first {ROWS} rows" in better.said, better.said
    registry = Registry(f"sqlite:///{tmp_path}/registry.db", f"{tmp_path}/audit")
    version = registry.register("writer", f"{folder}/good", "the first")
    assert Gate().judge(f"{folder}/good").passed
    assert registry.promote("writer", version.version, "the first").aliases == ("champion",)
    text = card(f"{folder}/good", "trying out")
    assert "text of at most 32 tokens" in text and "| perplexity |" in text and "Passed on" in text


def test_a_worse_one_is_refused(folder: Path) -> None:
    of = judged(folder, "bad", "good")
    for metric in ("loss", "perplexity"):
        decision = NotWorse(metric=metric).decide(of)
        assert not decision.passed and decision.numbers["low"] > 0.5, decision
    mine, theirs = (np.array(one.recorded[1]) / 32 for one in (of.candidate, of.champion) if one)
    numbers = NotWorse().decide(of).numbers
    assert numbers["low"] < float(np.mean(mine - theirs)) < numbers["high"]
    # Of many draws the interval of a mean is that of its standard error, but for what 1,000 draws leave open.
    error = float(np.std(mine - theirs)) / len(mine) ** 0.5
    assert numbers["high"] - numbers["low"] == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert NotWorse(margin=9.0).decide(of).passed
    same = NotWorse().decide(judged(folder, "good", "good"))
    assert same.passed and same.numbers["low"] == same.numbers["high"] == 0
    assert Calibrated().decide(of).said == "it gives no probabilities"


def test_other_tokens_other_requests(folder: Path, tmp_path: Path) -> None:
    shorter = judged(folder, "short", "good")
    assert "its context has 16 tokens, the champion's 32" in SameRequests().decide(shorter).said
    decision = NotWorse().decide(shorter)
    assert not decision.passed and "not scored on the same tokens" in decision.said
    assert SameRequests().decide(judged(folder, "good", "short")).passed
    shutil.copytree(folder / "good", tmp_path / "talks")
    (tmp_path / "talks" / "export" / TEMPLATE).write_text("{{ messages }}")
    talks = Finished.read(f"{tmp_path}/talks")
    said = SameRequests().decide(Judged(Finished.read(f"{folder}/good"), talks)).said
    assert said.startswith("it has no chat template")
    head = json.loads((tmp_path / "talks" / "export" / "export.json").read_text())
    head["language"]["tokenizer"] = "another"
    (tmp_path / "talks" / "export" / "export.json").write_text(json.dumps(head))
    decision = SameRequests().decide(Judged(Finished.read(f"{tmp_path}/talks"), Finished.read(f"{folder}/good")))
    assert not decision.passed and "another tokenizer" in decision.said


def test_what_is_altered_or_too_slow(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "good", tmp_path / "good")
    predictions = tmp_path / "good" / "predictions.json"
    recorded = json.loads(predictions.read_text())
    recorded["predictions"][3] *= 1.001
    predictions.write_text(json.dumps(recorded))
    of = Judged(Finished.read(f"{tmp_path}/good"), None)
    decision = Faithful().decide(of)
    assert not decision.passed and decision.numbers["difference"] == pytest.approx(0.001, rel=0.01)
    assert Within(latency_ms=1e6, memory_mb=1e6, size_mb=1e3).decide(of).passed
    slow = Within(latency_ms=1e-6).decide(of)
    assert not slow.passed and "ms to a first token (p99) of 1e-06" in slow.said
    assert "Set rows to 1" in Within(rows=64).decide(of).said
    weights = next((tmp_path / "good" / "export").glob("model-*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    decision = Servable().decide(Judged(Finished.read(f"{tmp_path}/good"), None))
    assert not decision.passed and f"{weights.name} is missing or was altered" in decision.said
    with pytest.raises(CheckpointError, match="Decoder is a model of another kind. Read it with rtrain.serve"):
        Predictor(f"{folder}/good/export")
