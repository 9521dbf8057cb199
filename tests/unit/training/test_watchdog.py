"""A rank that falls silent ends itself with its stacks; SIGTERM ends a process that is stuck in C."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import rtrain
from recipes.gpt_stdlib import debug as language_run
from rtrain.launch.ray_train import root_cause
from rtrain.run import Injection, Run
from rtrain.storage import Folder
from rtrain.training.job import run_job
from rtrain.training.preemption import Notice, Preempted
from rtrain.training.processes import in_world
from rtrain.training.watchdog import silent_ranks
from rtrain.training.world import join, leave
from tests.unit.training.jobs import At, job

HUNG = r"process \d+ terminated with exit code 70"


def sleeps() -> None:
    time.sleep(3600)


def stuck(run: Run) -> None:
    run_job(run, join(gpu=False, timeout_s=60), [At(3, sleeps)])


def injected(run: Run) -> None:
    run_job(run, join(gpu=False, timeout_s=60))


def test_a_world_of_one_that_is_stuck_outside_a_collective(tiny: Run) -> None:
    run = rtrain.override(tiny, {"faults.hang_s": 4.0})
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match=HUNG):
        in_world(1, stuck, run, deadline_s=120)
    (left,) = (Path(run.folder) / "stacks").iterdir()
    assert left.name == "attempt-1-rank-00000.txt"
    text = left.read_text()
    assert text.startswith("rank 0 on ") and "in phase 'callbacks' after step 3" in text.splitlines()[0]
    assert "in sleeps" in text


def sleeps_in_c() -> None:
    """With Python's lock, so that no thread of Python runs any more."""
    ctypes.PyDLL(None).sleep(3600)


def stuck_in_c(run: Run) -> None:
    run_job(run, join(gpu=False, timeout_s=60), [At(3, sleeps_in_c)])


@pytest.mark.slow
def test_a_rank_that_is_stuck_with_pythons_lock(tiny: Run) -> None:
    run = rtrain.override(tiny, {"faults.hang_s": 2.0, "checkpoint.background": False})
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match="terminated with exit code 1"):
        in_world(1, stuck_in_c, run, deadline_s=120)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"data": 2, "tensor": 2}, {"pipeline": 2, "microbatches": 2}])
def test_a_silent_rank_of_a_decoder_is_named(tmp_path: Path, layout: dict[str, Any]) -> None:
    """Its peers wait in collectives of the axes' groups; here those give up much later than the watchdog."""
    changes = {f"parallel.{name}": degree for name, degree in layout.items()}
    ranks = 4 if "tensor" in layout else 2
    run = rtrain.override(
        language_run(),
        {
            **changes,
            "name": "hang",
            "storage": str(tmp_path),
            "cluster.workers": ranks,
            "checkpoint.every.steps": 2,
            "tracking.to": (),
            "checkpoint.background": False,
        },
    )
    run = replace(run, faults=replace(run.faults, hang_s=12.0, inject=Injection(kind="hang", step=5, rank=1)))
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match=HUNG):
        in_world(ranks, injected, run, deadline_s=200)
    silent = silent_ranks(Folder(run.folder))
    assert len(silent) == ranks
    assert silent[0].startswith("rank 1 on ") and "in phase 'callbacks' after step 5" in silent[0], silent
    assert sum("callbacks" in text for text in silent) == 1, silent


def test_the_driver_names_the_silent_rank() -> None:
    class Lost:
        worker_failures = {0: RuntimeError("gloo: timed out"), 1: RuntimeError("the worker died")}  # noqa: RUF012

    said: Any = Lost()
    assert str(root_cause(said, ["rank 1 on here: silent for 4 s"])) == "rank 1 on here: silent for 4 s"


STUCK_IN_C = """
import ctypes, sys
from rtrain.training.preemption import Notice
with Notice(grace_s=1.0):
    mutex = ctypes.create_string_buffer(64)  # of zeros: one that is open
    libc = ctypes.CDLL(None)
    libc.pthread_mutex_lock(mutex)
    print("stuck", flush=True)
    libc.pthread_mutex_lock(mutex)
"""


def test_sigterm_ends_a_process_that_is_stuck_in_c() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK_IN_C], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout and process.stdout.readline() == "stuck\n"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 143
    assert "faults.grace_s" in errors and 'File "<string>", line 9' in errors


def test_sigterm_while_the_best_checkpoint_is_judged(tiny: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from rtrain.training import job as jobs

    run, build = rtrain.override(tiny, {"name": "judged"}), jobs.Replica

    def told(*arguments: Any, **options: Any) -> Any:
        if not options["training"]:
            os.kill(os.getpid(), signal.SIGTERM)
        return build(*arguments, **options)

    monkeypatch.setattr(jobs, "Replica", told)
    world = join(gpu=False, timeout_s=60)
    try:
        with Notice(60.0) as notice, pytest.raises(Preempted, match="while its best checkpoint was judged"):
            run_job(run, world, notice=notice)
    finally:
        leave()
    monkeypatch.undo()
    assert job(run).attempts == 2
