"""The launchers: where the ranks of a run come from, and how each trains one that is ready to start."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol

from rtrain.checkpoint.fence import Driver
from rtrain.launch import manifest
from rtrain.launch.clock import Clock
from rtrain.launch.taking import take
from rtrain.planning import plan
from rtrain.run import Run
from rtrain.training.events import Callback

if TYPE_CHECKING:
    from rtrain.training.job import Outcome

Name = Literal["ray", "inline", "torchrun"]
Ended = tuple[Driver, "Outcome"]
"""Who took the run, and what came of it."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Start:
    """What a launcher needs of a start."""

    run: Run
    stack: ExitStack
    """Left when the run has ended, well or not."""
    fresh: bool
    callbacks: Sequence[Callback]
    """The user's own, for every rank."""
    clock: Clock
    say: Say
    data: str = ""
    """Fingerprint of what is trained on; of a rank that leads nobody, empty."""
    command: str = ""
    """That started it, as a user would write it."""
    parent: manifest.Parent | None = None
    """What the run was made from."""

    def take(self, *, again: str = "") -> Driver:
        """As `rtrain.launch.taking.take`, and told in the manifest; all that comes before the workers is done then."""
        driver = take(self.run, self.stack, fresh=self.fresh, say=self.say, again=again)
        codes = manifest.Codes.here(self.command)
        number = manifest.begin(self.run, codes, data=self.data, parent=self.parent)

        def end(kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
            manifest.end(self.run, number, error)

        self.stack.push(end)
        self.clock.lap("start-up")
        return driver


class Launcher(Protocol):
    """Where a run's ranks come from."""

    @property
    def leads(self) -> bool:
        """Whether this process is the one that checks, says and hands on: of several ranks the first."""

    def prepare(self, run: Run, say: Say) -> Run:
        """The run as it can be had here, before anything is checked; `say` tells the user what is left out."""

    def run(self, start: Start) -> Ended | None:
        """Train it to its end; none on a rank that leaves the rest to another.

        Raises:
            RtrainError: it did not get there.
        """


class OnRay:
    """Workers of Ray Train, on a cluster by RAY_ADDRESS or an embedded one."""

    leads = True

    def prepare(self, run: Run, say: Say) -> Run:
        """As it is."""
        return run

    def run(self, start: Start) -> Ended:
        """See `Launcher`."""
        from rtrain.launch.bar import Watch
        from rtrain.launch.session import ray_session

        run = start.run
        with ThreadPoolExecutor(1) as beside:
            planned = beside.submit(plan, run)  # imports torchrec while Ray starts
            start.stack.enter_context(ray_session(run.cluster))
            planned.result()
        if run.handoff.serve_check:
            from rtrain.serving.ports import check_port

            check_port(
                "127.0.0.1", run.handoff.port, "handoff.port", "--handoff.port"
            )  # now, and not when the training is over
        from rtrain.launch import worker_logs
        from rtrain.launch.ray_train import train_on_ray

        driver = start.take()
        start.say(f"starting {run.cluster.workers} workers")
        with worker_logs.kept_on_failure(run.folder, driver), Watch(run, start.say):
            return driver, train_on_ray(run, driver=driver.token, listeners=start.callbacks)


class _WithoutRay:
    """As many workers as there are processes already, and nothing served."""

    def prepare(self, run: Run, say: Say) -> Run:
        """With those workers, and without the serving check."""
        run = replace(run, cluster=replace(run.cluster, workers=int(os.environ.get("WORLD_SIZE", "1"))))
        if run.handoff.serve_check:
            say("the serving check needs Ray; left out under this launcher")
            run = replace(run, handoff=replace(run.handoff, serve_check=False))
        return run


class Inline(_WithoutRay):
    """This process alone."""

    leads = True

    def run(self, start: Start) -> Ended:
        """See `Launcher`."""
        from rtrain.launch.local import train_inline

        plan(start.run)
        driver = start.take()
        return driver, train_inline(start.run, driver.token, start.callbacks)


class UnderTorchrun(_WithoutRay):
    """The rank that torchrun made this process."""

    @property
    def leads(self) -> bool:
        """Of rank 0."""
        return os.environ.get("RANK", "0") == "0"

    def run(self, start: Start) -> Ended | None:
        """See `Launcher`."""
        from rtrain.launch.local import Agent, train_under_torchrun

        plan(start.run)
        driver = None
        if self.leads:  # the others wait for it when they join the process group
            agent = Agent()
            driver = start.take(again=agent.driver)
            agent.keep(driver.token)
        outcome = train_under_torchrun(start.run, driver.token if driver else "", start.callbacks)
        return (driver, outcome) if driver and outcome else None


LAUNCHERS: dict[Name, Launcher] = {"ray": OnRay(), "inline": Inline(), "torchrun": UnderTorchrun()}
