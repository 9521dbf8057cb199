"""How each launcher trains a run that is ready to start."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rtrain.checkpoint.fence import Driver
from rtrain.launch.clock import Clock
from rtrain.launch.taking import take
from rtrain.planning import plan
from rtrain.run import Run

if TYPE_CHECKING:
    from rtrain.training.job import Outcome

Launcher = Literal["ray", "inline", "torchrun"]
Ended = tuple[Driver, "Outcome"]
"""Who took the run, and what came of it; none on a rank that leaves the rest to another."""


@dataclass(frozen=True)
class Start:
    """What a launcher needs of a start."""

    run: Run
    stack: ExitStack
    """Left when the run has ended, well or not."""
    fresh: bool
    leads: bool
    clock: Clock
    say: Callable[[str], None]

    def take(self, *, again: str = "") -> Driver:
        """As `rtrain.launch.taking.take`; all that comes before the workers is done then."""
        driver = take(self.run, self.stack, fresh=self.fresh, say=self.say, again=again)
        self.clock.lap("start-up")
        return driver


def _on_ray(start: Start) -> Ended:
    from rtrain.launch.bar import Watch
    from rtrain.launch.session import ray_session

    run = start.run
    with ThreadPoolExecutor(1) as beside:
        planned = beside.submit(plan, run)  # imports torchrec while Ray starts
        start.stack.enter_context(ray_session(run.cluster))
        planned.result()
    if run.handoff.serve_check:
        from rtrain.serving.app import check_port

        check_port("127.0.0.1", run.handoff.port)  # now, and not when the training is over
    from rtrain.launch import worker_logs
    from rtrain.launch.ray_train import train_on_ray

    driver = start.take()
    start.say(f"starting {run.cluster.workers} workers")
    with worker_logs.kept_on_failure(run.folder, driver), Watch(run, start.say):
        return driver, train_on_ray(run, driver=driver.token)


def _inline(start: Start) -> Ended:
    from rtrain.launch.local import train_inline

    driver = start.take()
    return driver, train_inline(start.run, driver.token)


def _under_torchrun(start: Start) -> Ended | None:
    from rtrain.launch.local import Agent, train_under_torchrun

    driver = None
    if start.leads:  # the others wait for it when they join the process group
        agent = Agent()
        driver = start.take(again=agent.driver)
        agent.keep(driver.token)
    outcome = train_under_torchrun(start.run, driver.token if driver else "")
    return (driver, outcome) if driver and outcome else None


LAUNCHERS: dict[Launcher, Callable[[Start], Ended | None]] = {
    "ray": _on_ray,
    "inline": _inline,
    "torchrun": _under_torchrun,
}
