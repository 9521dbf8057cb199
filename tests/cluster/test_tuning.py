"""A search over two fields, each trial a run on two workers."""

from pathlib import Path
from typing import Any

import pytest

import rtrain
from rtrain.errors import ConfigError


@pytest.mark.slow
def test_two_trials(small_run: Any, joined_ray: None) -> None:
    run = rtrain.override(small_run, {"duration.steps": 20, "evaluation.every.steps": 20})
    space = {"optim.lr": rtrain.loguniform(1e-4, 1e-2), "sparse_optim.lr": rtrain.choice(0.01, 0.05)}
    tuned = rtrain.tune(run, space, trials=2, command="python recipe.py train")
    assert len(tuned.trials) == 2
    assert [t.error for t in tuned.trials] == ["", ""]
    first, second = tuned.trials
    assert first.metrics["auc"] >= second.metrics["auc"]
    assert first.changes != second.changes
    assert all(1e-4 <= t.changes["optim.lr"] <= 1e-2 for t in tuned.trials)
    assert (Path(tuned.checkpoint) / "COMMITTED").exists()
    assert rtrain.diff(run.optim, tuned.run.optim) == [f"lr: {run.optim.lr} -> {first.changes['optim.lr']}"]
    assert tuned.command.startswith("python recipe.py train --optim.lr ")
    lines = str(tuned).splitlines()
    assert lines[0].split() == ["trial", "optim.lr", "sparse_optim.lr", "auc", "steps"]
    assert lines[-1] == f"best: {tuned.command}"


def test_a_key_that_is_not_there(small_run: Any) -> None:
    with pytest.raises(ConfigError, match="optim.lrr: AdamW has no field 'lrr'; did you mean 'lr'"):
        rtrain.tune(small_run, {"optim.lrr": rtrain.loguniform(1e-4, 1e-2)}, trials=1)
