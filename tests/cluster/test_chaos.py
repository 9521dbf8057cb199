"""`rtrain chaos`: failures that are brought about leave no trace in losses, metrics and samples."""

import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rtrain
from recipes.dlrm_movielens import debug
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.ledger.proof import account
from rtrain.rehearsal.chaos import KINDS, chaos

SEED = random.randrange(1000)
"""Another failure each time, told by the test's output."""


@pytest.mark.timeout(600)
def test_a_drawn_failure_leaves_no_trace(joined_ray: None, tmp_path: Path) -> None:
    changes = {"storage": str(tmp_path / "runs"), "checkpoint.every.steps": 5, "checkpoint.keep": 9}
    run: Any = rtrain.override(debug(), changes)
    kind = random.Random(SEED).choice([k for k in KINDS if k not in ("slow-rank", "hang")])
    print(f"seed {SEED}: {kind}")
    twin = chaos(run, kinds=[])
    found = chaos(run, kinds=[kind], seed=SEED)
    (failure,) = found.failures
    names = [f"{run.name}-chaos-{kind}", f"{run.name}-chaos-none"]
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == sorted(names), "the second replaces the first"
    assert twin.epochs == found.epochs == 1, "so that a missing sample is one by the data alone"
    for name in names:
        proved = account(str(tmp_path / "runs" / name), verify=True)
        assert [(e.complete, e.consumed) for e in proved.epochs] == [(True, found.rows), (False, 7 * found.rows // 13)]
    assert (failure.kind, failure.verdict, found.holds) == (kind, "same", True), str(found)
    assert (failure.samples_lost, failure.samples_repeated) == (0, 0)
    assert (failure.max_loss_diff, failure.final_metric_diff) == (0.0, 0.0)
    assert failure.detected_s is not None and failure.recovered_s is not None
    assert 0 < failure.detected_s <= failure.recovered_s
    # It did come about, and a checkpoint that was damaged is not what the next attempt began with.
    folder = tmp_path / "runs" / f"{run.name}-chaos-{kind}"
    note = json.loads((folder / "injected.json").read_text())
    since_newest = note["step"] - note["newest"]
    damaged = kind in ("corrupt-checkpoint", "truncate-checkpoint")
    assert failure.steps_repeated > since_newest if damaged else failure.steps_repeated <= since_newest
    assert max(CheckpointFolders(str(folder)).committed()) == found.steps


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_verb_answers_with_one_line(recipe: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = recipe("chaos", "--debug", "--json", "--checkpoint.every.steps", "5", "--failures", "kill-rank")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()  # Ray prints of a worker that died, too
    said = json.loads(line)
    assert (said["epochs"], [f["verdict"] for f in said["failures"]]) == (1, ["same"])
    assert f"every rehearsal trains on the last {said['rows']} (data.train_rows)" in done.stderr
