"""A run as a Ray Train job: TorchTrainer owns the workers, their restarts and the process group."""

import signal
import threading
from collections.abc import Sequence
from typing import Any

import pyarrow.fs
import ray.train
from ray.exceptions import RayActorError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from rtrain.checkpoint import fence
from rtrain.checkpoint.fence import Fenced
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    DataError,
    RtrainError,
    RunFailed,
    UserError,
    one_line,
)
from rtrain.run import Run
from rtrain.scratch import Scratch
from rtrain.storage import Folder
from rtrain.training.events import Callback, State
from rtrain.training.job import Outcome, run_job
from rtrain.training.watchdog import silent_ranks
from rtrain.training.world import join

REFUSED = "refused.json"
USER_ERRORS = (UserError, ConfigError, DataError, CheckpointError, ClusterError)

# What a healthy rank says when a peer has gone away: never the cause.
COLLATERAL = ("connection closed by peer", "connection reset", "broken pipe", "gloo", "nccl", "peer", "timed out")


def train_on_ray(
    run: Run,
    *,
    driver: str = "",
    listeners: Sequence[Callback] = (),
    test: bool = True,
) -> Outcome:
    """Train on the Ray that is joined; workers that fail are restarted `faults.max_failures` times.

    `driver`: token of the driver that took the run (none: it is taken here); once another one has, no worker begins.
    `listeners`: copied to every rank, where they hear of the loop's events.
    `test`: whether the best checkpoint is scored on the test split.

    Raises:
        RtrainError: the root cause of a run that could not be finished; peers' errors are left out.
    """
    driver = driver or fence.take(CheckpointFolders(run.folder)).token
    Folder(run.folder).discard(REFUSED)
    path, filesystem = ray_storage(run.folder)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"run": run, "driver": driver, "listeners": tuple(listeners), "test": test},
        torch_config=TorchConfig(
            backend="nccl" if run.cluster.gpus_per_worker else "gloo",
            timeout_s=int(run.faults.collective_s),
        ),
        scaling_config=ScalingConfig(
            num_workers=run.cluster.workers,
            use_gpu=bool(run.cluster.gpus_per_worker),
            resources_per_worker={"CPU": run.cluster.cpus_per_worker}
            | ({"GPU": run.cluster.gpus_per_worker} if run.cluster.gpus_per_worker else {}),
        ),
        run_config=RunConfig(
            # A new name for each start: what a resume needs is in rtrain's own checkpoints, and Ray's
            # snapshot file is written in place, so a killed driver could leave half of one.
            name=_next_name(run.folder),
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=run.faults.max_failures, controller_failure_limit=3),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    silent_before = set(silent_ranks(Folder(run.folder)))
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        result = trainer.fit()
    except SystemExit:
        # Ray answers Ctrl-C by aborting the workers and then leaving the process; here it stays an interrupt.
        raise KeyboardInterrupt from None
    except WorkerGroupError as error:
        silent = [text for text in silent_ranks(Folder(run.folder)) if text not in silent_before]
        raise root_cause(error, silent) from None
    except RayActorError as error:
        raise RunFailed(
            f"run {run.name!r}: Ray Train's controller died ({one_line(error)}). "
            "Start the run again by its name to resume"
        ) from error
    except TrainingFailedError as error:
        raise RunFailed(f"run {run.name!r}: {one_line(error)}. Start it again by its name to resume") from error
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler)  # Ray leaves its own one behind
    outcome: Outcome | RtrainError | None = result.return_value
    if isinstance(outcome, RtrainError):
        raise outcome
    if outcome is None:
        raise RunFailed(f"run {run.name!r}: the workers ended without a result. Start it again by its name to resume")
    return outcome


def root_cause(error: WorkerGroupError, silent: Sequence[str] = ()) -> RtrainError:
    """The error that came first, as its worker told it; what its peers felt of it is left out.

    `silent`: what ranks that ended themselves said of it, the one that was waited for first.
    """
    by_rank = {rank: getattr(e, "_base_exc", e) for rank, e in error.worker_failures.items()}
    named = [e for e in by_rank.values() if isinstance(e, RtrainError)]
    first = [e for e in named if not any(word in str(e).lower() for word in COLLATERAL)]
    foreign = [(rank, e) for rank, e in by_rank.items() if not isinstance(e, RtrainError)]
    if first:
        return first[0]
    if silent:
        return RunFailed(silent[0])
    if foreign:
        rank, lost = foreign[0]
        return RunFailed(f"rank {rank}: {one_line(lost)}. Start the run again by its name to resume")
    return named[0]


def _worker(config: dict[str, Any]) -> Outcome | RtrainError | None:
    """One rank's train function.

    Ray restarts whatever raises; what the user must mend would fail again each time. So the rank
    that refuses leaves a note, and the restart hands the error over as a result instead.
    """
    run: Run = config["run"]
    folder = Folder(run.folder)
    if folder.exists(REFUSED):
        note = folder.read_json(REFUSED)
        return next(kind for kind in USER_ERRORS if kind.__name__ == note["kind"])(note["text"])
    world = join(gpu=bool(run.cluster.gpus_per_worker), timeout_s=run.faults.collective_s)
    try:
        listeners = [ReportCheckpoints(world.leads), *config["listeners"]]
        outcome = run_job(run, world, listeners, driver=config["driver"], test=config["test"])
    except Fenced as error:
        # The run is another driver's now: no note that would stop its workers, and no restart of ours.
        return error
    except UserError as error:
        folder.write_json(REFUSED, {"kind": type(error).__name__, "text": str(error)})
        raise
    return outcome if world.leads else None


class ReportCheckpoints(Callback):
    """Tells Ray Train of each committed checkpoint, and of nothing else: `report` is a barrier."""

    def __init__(self, leads: bool):
        self.leads = leads

    def checkpointed(self, state: State) -> None:
        """A pointer to the checkpoint: the bytes are in rtrain's own folder already."""
        metrics = {"step": state.step, "best_step": state.best_step, **state.best}
        if not self.leads:
            ray.train.report(metrics)
            return
        with Scratch("pointer") as folder:
            (folder / "step.txt").write_text(f"{state.step}\n")
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(str(folder)))


def ray_storage(folder: str) -> tuple[str, pyarrow.fs.FileSystem | None]:
    """`storage_path` and `storage_filesystem` of Ray's RunConfig for any fsspec URI."""
    target = Folder(f"{folder}/ray")
    if target.is_local:
        return target.path, None
    return target.path, pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(target.fs))


def _next_name(folder: str) -> str:
    taken = [n for n in Folder(f"{folder}/ray").names() if n.startswith("start-")]
    return f"start-{len(taken) + 1:04d}"
