"""The main job as a person starts it, in each of its ways."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.conftest import RECIPE, environment, free_port, last_json
from tests.cluster.places import Place

Recipe = Callable[..., subprocess.CompletedProcess[str]]
PYTHON = (sys.executable, str(RECIPE))
KEYS = {
    "run", "test", "baseline_auc", "steps", "world_size", "checkpoint", "export", "served", "report", "seconds",
}  # fmt: skip


@pytest.mark.timeout(600)  # a run and its verbs, each of which starts anew
def test_end_to_end(place: Place, seed: str) -> None:
    """And nothing of it stays behind, nor of the verbs that look at it; the day draws two of them."""
    process = place.start(*PYTHON, "train", "--json", "--duration.steps", "40", "--handoff.port", str(free_port()))
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    place.expect_nothing()
    result = last_json(out)
    assert result.keys() >= KEYS
    assert result["test"].keys() == {"auc", "log_loss", "ndcg@10"}
    assert result["served"] is True, "the served answers differ from the trainer's"
    assert 0 < result["served_max_difference"] < 1e-5, "0 would mean that nothing was compared"
    assert result["steps"] == 40
    assert result["world_size"] == 2
    assert all((place.work / result[k]).exists() for k in ("checkpoint", "export", "report"))
    assert "step 40/40" in err, "the progress bar is not readable in a log"
    name = result["run"]
    assert [line for line in err.splitlines() if not line.startswith(f"{name}: ")] == []
    notices = (place.work / result["report"]).parent / "notices"
    assert "deprecat" in (notices / "rank-00001.log").read_text()
    phases = {"data", "forward", "backward", "optimizer", "communication", "checkpoint", "last checkpoint", "other"}
    phases |= {"evaluation", "records", "sampling"}
    assert set(result["breakdown"]) == phases
    assert result["breakdown"]["communication"] > 0

    run = str(place.work / "runs" / name)
    rtrain = (sys.executable, "-m", "rtrain")
    verbs = [
        (*PYTHON, "plan"), (*PYTHON, "config"), (*rtrain, "ledger", run, "--verify"), (*rtrain, "report", run),
        (*rtrain, "checkpoints", run, "verify"), (*rtrain, "checkpoints", run, "export", "--to", f"{run}/model"),
    ]  # fmt: skip
    two = random.Random(seed).sample(verbs, 2) if seed else verbs
    for pair in zip(two[::2], two[1::2], strict=True):
        for command, verb in [(command, place.start(*command)) for command in pair]:
            _, err = verb.communicate(timeout=120)
            assert verb.returncode == 0, (command, err)
    place.expect_nothing()


@pytest.mark.slow
def test_inline_equals_torchrun(recipe: Recipe, ray_temp_dir: str) -> None:
    words = ["train", "--json", "--debug", "--log_every_steps", "1"]
    alone = recipe(*words, "--name", "alone", "--launcher", "inline")
    assert alone.returncode == 0, alone.stderr
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()))
    both = recipe(*words, "--name", "both", "--launcher", "torchrun", python=(sys.executable, *torchrun))
    assert both.returncode == 0, both.stderr
    again = recipe(*words, "--name", "both", "--launcher", "torchrun", python=(sys.executable, *torchrun))
    assert "finished already" in again.stderr, "all ranks must agree that there is nothing to do"
    assert last_json(again.stdout) == last_json(both.stdout)
    one, two = last_json(alone.stdout), last_json(both.stdout)
    assert (one["world_size"], two["world_size"]) == (1, 2)
    # 20 steps in float32, summed in another order: the two agree to rounding, not to a tolerance of taste.
    # Dropout draws another mask on each rank, so only the run without it would agree closer.
    assert one["test"]["auc"] == pytest.approx(two["test"]["auc"], abs=0.02)


def test_without_ray_no_ray_is_imported(tmp_path: Path, ray_temp_dir: str) -> None:
    code = (
        "import runpy, sys\n"
        "sys.modules['ray'] = None\n"  # an import of ray now raises ImportError
        "sys.modules['deepspeed'] = None\n"
        f"sys.argv = [{str(RECIPE)!r}, *'train --debug --json --launcher inline --parallel.dense ddp'.split()]\n"
        f"runpy.run_path({str(RECIPE)!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(ray_temp_dir),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert last_json(done.stdout)["world_size"] == 1
