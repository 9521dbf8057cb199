"""A run that is killed or interrupted comes back by itself or by its name, and ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import rtrain
from recipes.dlrm_movielens import run as recipe_run
from rtrain.errors import RunFailed
from rtrain.ledger.proof import account
from tests.cluster.conftest import (
    RECIPE,
    SHORT,
    committed_step,
    environment,
    history_of,
    last_json,
    wait_for,
)


@pytest.fixture(scope="module")
def undisturbed(joined_ray: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the short run comes to when nothing happens to it, with its losses by step."""
    calm = rtrain.override(recipe_run(), {**SHORT, "name": "calm", "storage": str(tmp_path_factory.mktemp("calm"))})
    result = rtrain.train(calm, quiet=True)
    assert result is not None
    assert result.values["attempts"] == 1
    return {"test": result.metrics, "losses": losses(calm.folder)}


def losses(folder: str) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in history_of(folder) if line["kind"] == "train"}


def test_rank_killed_at_a_random_step(small_run: Any, undisturbed: dict[str, Any]) -> None:
    victim, step = random.randrange(2), random.randrange(12, 80)
    print(f"killing rank {victim} at step {step}")
    outcome: list[Any] = []
    thread = threading.Thread(target=lambda: outcome.append(rtrain.train(small_run, quiet=True)))
    thread.start()
    folder = Path(small_run.folder)
    wait_for(lambda: committed_step(folder) >= step, f"step {step}")
    placement = json.loads((folder / "placement.json").read_text())
    os.kill(placement["ranks"][victim]["pid"], signal.SIGKILL)
    thread.join(240)
    (result,) = outcome
    assert result.values["attempts"] == 2
    starts = [line["step"] for line in history_of(str(folder)) if line["kind"] == "start"]
    assert starts[0] == 0
    assert starts[1] > 0, "it began anew instead of going on from a checkpoint"
    # The same layout again, so not nearly but exactly the same: losses of every step, and test metrics.
    assert losses(str(folder)) == undisturbed["losses"]
    assert result.metrics == undisturbed["test"]


def test_no_failures_allowed_names_the_cause(small_run: Any, joined_ray: None) -> None:
    hopeless = rtrain.override(
        small_run, {"sparse_optim.lr": 1e30, "optim.lr": 1e20, "faults.max_failures": 0, "name": "hopeless"}
    )
    with pytest.raises(RunFailed, match=r"^rank [01] on .+, step \d+: the loss is (nan|inf) at step \d+"):
        rtrain.train(hopeless, quiet=True)


@pytest.mark.slow
@pytest.mark.timeout(900)  # three starts, each of which may take minutes beside other work
def test_interrupted_and_resumed_by_name(tmp_path: Path, ray_temp_dir: str, undisturbed: dict[str, Any]) -> None:
    words = ["train", "--json", "--name", "interrupted", *(w for k, v in SHORT.items() for w in (f"--{k}", str(v)))]
    command = [sys.executable, str(RECIPE), *words]
    env = environment(ray_temp_dir)
    folder = tmp_path / "runs" / "interrupted"
    process = subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: committed_step(folder) >= 20, "step 20")
        workers = [r["pid"] for r in json.loads((folder / "placement.json").read_text())["ranks"]]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()  # its Ray ends with it, and is swept by the next
    assert process.returncode == 130, err
    assert last_json(out) == {"error": "interrupted", "exit_code": 130}
    assert "Traceback" not in err
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "the end of all workers")

    again = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    assert "resumes from step" in again.stderr
    result = last_json(again.stdout)
    assert result["attempts"] == 2
    assert losses(str(folder)) == undisturbed["losses"]
    assert result["test"] == undisturbed["test"]

    finished = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert last_json(finished.stdout) == result
    assert "finished already" in finished.stderr


@pytest.mark.slow
def test_a_second_driver_takes_the_run_over(tmp_path: Path, ray_temp_dir: str) -> None:
    """Each has a Ray of its own, as on two machines; Ray's retries do not give the first one's workers the run back."""
    long = {
        **SHORT,
        "name": "twice",
        "duration.steps": 100_000,
        "duration.epochs": 1000,
        "evaluation.every.steps": 50_000,
    }
    command = [sys.executable, str(RECIPE), "train", *(w for k, v in long.items() for w in (f"--{k}", str(v)))]
    folder = tmp_path / "runs" / "twice"
    with ExitStack() as ends:

        def start() -> subprocess.Popen[str]:
            process = subprocess.Popen(
                command, cwd=tmp_path, env=environment(ray_temp_dir), stderr=subprocess.PIPE, text=True
            )
            ends.callback(process.kill)
            return process

        first = start()
        wait_for(lambda: committed_step(folder) >= 20, "step 20")
        second = start()
        _, err = first.communicate(timeout=200)
        assert first.returncode == 2 and "has taken it over from attempt 1" in err.strip().splitlines()[-1], err
        assert "Traceback" not in err
        at = committed_step(folder)
        wait_for(lambda: committed_step(folder) >= at + 30, "the second to go on")
        second.send_signal(signal.SIGINT)
        second.communicate(timeout=100)
        assert second.returncode == 130
    proved = account(str(folder), verify=True)
    assert proved.holds, proved
    assert next(line["step"] for line in history_of(str(folder)) if line["kind"] == "start") == 0
