"""The decoder on Ray over tensor ranks: from text, through a kill, to files that transformers reads."""

import json
import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

import rtrain
from recipes.gpt_stdlib import debug
from rtrain.handoff.served import SAME
from rtrain.parity import LOSS
from tests.cluster.conftest import committed_step, history_of, wait_for
from tests.cluster.test_recovery import losses

SHORT = {
    "cluster.workers": 2,  # dp2 x tp2 with 4: docs/chaos.md, tests/parallel
    "parallel.tensor": 2,
    "duration.steps": 60,
    "log_every_steps": 1,
    "checkpoint.every.steps": 5,
    "evaluation.every.steps": 30,
    "model.layers": 2,
}


@pytest.mark.slow
def test_a_killed_rank_of_a_tensor_parallel_run(joined_ray: None, serve_port: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    run = rtrain.override(debug(), {**SHORT, "storage": str(tmp_path / "runs")})
    served = {"name": "calm", "handoff.serve_check": True, "handoff.port": serve_port, "handoff.rows": 50}
    calm = rtrain.train(rtrain.override(run, served), quiet=True)
    assert calm is not None
    assert calm.values["served"] is True and 0 <= calm.values["served_max_difference"] <= SAME
    assert (calm.values["world_size"], calm.values["attempts"]) == (2, 1)

    victim, step = random.randrange(2), random.randrange(5, 40)
    print(f"killing rank {victim} at step {step}")
    outcome: list[Any] = []
    thread = threading.Thread(target=lambda: outcome.append(rtrain.train(run, quiet=True)))
    thread.start()
    folder = Path(run.folder)
    wait_for(lambda: committed_step(folder) >= step, f"step {step}")
    placement = json.loads((folder / "placement.json").read_text())
    assert [r["coordinates"] for r in placement["ranks"]] == [{"pipeline": 0, "data": 0, "tensor": t} for t in (0, 1)]
    os.kill(placement["ranks"][victim]["pid"], signal.SIGKILL)
    thread.join(240)
    (result,) = outcome
    assert result.values["attempts"] == 2
    assert [line["step"] for line in history_of(str(folder)) if line["kind"] == "start"][1] > 0
    assert losses(str(folder)) == losses(f"{tmp_path}/runs/calm")
    assert result.metrics == calm.metrics

    # The export, read by transformers, has the trainer's own loss on the test split.
    import torch

    model = transformers.AutoModelForCausalLM.from_pretrained(result.export)
    total, tokens = 0.0, 0
    for batch in run.data.open().scan("test", global_batch=64, rank=0, world_size=1):
        with torch.no_grad():
            logits = model(batch.tokens).logits.flatten(0, 1)
        total += float(torch.nn.functional.cross_entropy(logits, batch.targets.flatten(), reduction="sum"))
        tokens += batch.loss_units(float)
    assert total / tokens == pytest.approx(result.metrics["loss"], abs=LOSS)
    report = Path(result.report).read_text()
    assert "perplexity" in report.lower()
