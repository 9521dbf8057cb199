"""What a recipe and a notebook call: train, plan, serve, tune."""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

from rtrain import config, notices
from rtrain.errors import UserError
from rtrain.export.artifact import export_in
from rtrain.launch.clock import WORKERS, Clock
from rtrain.launch.launchers import LAUNCHERS, Launcher, Name, Start
from rtrain.launch.manifest import Parent
from rtrain.launch.taking import finished, refuse_another, refuse_changed_data, warn_of_changed_data
from rtrain.parallel.first_vectors import check_vectors
from rtrain.planning import Plan, check, plan
from rtrain.run import Run
from rtrain.storage import Folder, check_writable
from rtrain.training import history
from rtrain.training.agreement import open_data, refuse_shares
from rtrain.training.events import Callback, Together

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rtrain.language.decoding import Decoding
    from rtrain.serving.app import Served
    from rtrain.serving.scale import Scale
    from rtrain.stages.config import TwoStages


@dataclass(frozen=True)
class Result:
    """A finished run."""

    run: Run
    values: Mapping[str, Any]
    """The JSON line of `train --json`."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics of the best checkpoint on the test split."""
        test: Mapping[str, float] = self.values["test"]
        return test

    @property
    def checkpoint(self) -> str:
        """URI of the best checkpoint."""
        return str(self.values["checkpoint"])

    @property
    def export(self) -> str:
        """URI of the export."""
        return str(self.values["export"])

    @property
    def report(self) -> str:
        """URI of report.html."""
        return str(self.values["report"])

    def curve(self) -> "Figure":
        """Training loss and validation metrics over the steps, as a matplotlib figure."""
        from rtrain.report import curve

        return curve(history.read(Folder(self.run.folder)), best_step=self.values["best_step"])


@notices.aside()
def train(
    run: Run,
    *,
    launcher: Name | Launcher = "ray",
    fresh: bool = False,
    callbacks: Sequence[Callback] = (),
    command: str = "",
    parent: Parent | None = None,
    quiet: bool = False,
) -> Result | None:
    """Train a run to its end and hand it on; a name that exists resumes.

    `launcher`: "ray" (a cluster by RAY_ADDRESS, else an embedded one), "inline" (this process, no
    Ray), "torchrun" (this process is a rank; the result comes on rank 0, none elsewhere), or one of your own.
    `callbacks`: hear of the loop's events on every rank (`rtrain.training.events`). Ray's workers get copies, so what
    they learn is to be written somewhere, or kept by their `state`.
    `parent`: what the run was made from, for its manifest, as `{"kind": "repeat", "run": "runs/before"}`.
    `quiet`: leave out what is said before and after the steps; the lines of progress stay.
    `fresh`: start anew; what the name held before is moved aside, never deleted.

    Raises:
        UserError: something in the config, the data, the machine or the storage has to be mended.
        RunFailed: the run did not finish; the same call resumes it.
    """
    clock = Clock()
    run = absolute(run)
    Together(callbacks)  # refuses what could not be told apart
    place = LAUNCHERS[launcher] if isinstance(launcher, str) else launcher
    leads = place.leads

    def say(text: str) -> None:
        if leads and not quiet:
            print(f"{run.name}: {text}", file=sys.stderr, flush=True)

    asked = run
    run = place.prepare(run, say)
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and "_ray_pkg_" in run.storage:
        say(f"storage {run.storage} is in the job's own folder, which goes when the job goes. Keep it with --storage")
    mesh = check(run)
    if leads:
        check_writable(run.storage)
        data = open_data(run)  # gets and checks the data before any worker starts
        refuse_shares(run, data, mesh)
    done = None if fresh else finished(run, asked, say)
    if done is not None:
        if leads:
            warn_of_changed_data(run, data, say)
        return Result(run, done) if leads else None
    known = False
    if leads and not fresh:
        refuse_another(run)
        known = refuse_changed_data(run, data)
    if leads:
        if not known:
            data.refuse_rows()
            check_vectors(run.blueprint.tables)
        from rtrain.export.formats import refuse_export

        refuse_export(run, data)
        for line in data.remarks(run.evaluation.boosting_rows, mesh.readers(run.blueprint.dealt)):
            say(line)
    with ExitStack() as stack:
        stack.enter_context(notices.aside(run.folder if leads else "", "driver"))
        fingerprint = data.fingerprint if leads else ""
        ended = place.run(Start(run, stack, fresh, callbacks, clock, say, fingerprint, command, parent))
        if ended is None:
            return None
        driver, outcome = ended
        clock.lap(WORKERS)
        from rtrain.handoff.finish import finish

        return Result(run, finish(run, outcome, driver=driver, command=command, clock=clock, say=say))


def absolute(run: Run) -> Run:
    """The run with local paths made absolute, so that they mean the same in every process."""
    changes: dict[str, object] = {"data": run.data.absolute()}
    if "://" not in run.storage:
        changes["storage"] = os.path.abspath(run.storage)
    return config.override(run, changes)


@notices.aside()
def serve(
    target: "Result | str | PathLike[str] | TwoStages",
    *,
    replicas: "int | Scale" = 1,
    port: int = 8000,
    grpc_port: int | None = None,
    replace: bool = False,
    decoding: "Decoding | None" = None,
) -> "Served":
    """Serve an export (or a finished run, or its folder), or two stages of such, on Ray Serve, on localhost.

    `replicas`: so many, or as many as a `Scale` says by the load. `grpc_port`: where gRPC answers too
    (`rtrain/serving/model.proto`); None: nowhere. `replace`: also where another process serves on this cluster.
    `decoding`: of a language model how it answers.

    The Ray that is joined is used, else one is found by RAY_ADDRESS or started; one that is started
    here ends with `Served.stop()`, or with the process. On a cluster what is served goes on when the process has
    ended, until `rtrain serve --stop`.
    """
    import ray

    from rtrain.launch.session import ray_session
    from rtrain.run import Cluster
    from rtrain.serving.app import APPLICATION, deploy
    from rtrain.serving.scale import Scale

    served = _served(target)
    session = ExitStack()
    if not ray.is_initialized():
        session.enter_context(ray_session(Cluster(workers=1), waits=False))
    try:
        scale = Scale.by(replicas)
        return deploy(
            served, name=APPLICATION, port=port, scale=scale, session=session, grpc_port=grpc_port, replace=replace,
            decoding=decoding,
        )  # fmt: skip
    except BaseException:
        session.close()
        raise


def _served(target: "Result | str | PathLike[str] | TwoStages") -> "str | TwoStages":
    from rtrain.stages.config import TwoStages

    if isinstance(target, Result):
        return target.export
    if isinstance(target, TwoStages):
        return target
    if not isinstance(target, str | PathLike):
        raise UserError(f"serve: a run's folder, its export, what train gave, or TwoStages, got {target!r:.60}")
    return export_in(os.fspath(target))


__all__ = ["Launcher", "Name", "Plan", "Result", "absolute", "plan", "serve", "train"]
