"""The run behind a trial: a Ray task, and what its ranks ask before each interval."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray

from rtrain import config
from rtrain.errors import RtrainError, RunFailed, one_line
from rtrain.run import Run
from rtrain.storage import Folder
from rtrain.training.events import Callback, State
from rtrain.tuning.fork import fork
from rtrain.tuning.gate import STOP
from rtrain.tuning.journal import Entry, Journal
from rtrain.tuning.latency import LATENCY, latency_ms
from rtrain.tuning.space import Space, changes, storable
from rtrain.tuning.trial import STEP
from rtrain.tuning.trials import run_of

if TYPE_CHECKING:
    from rtrain.launch.manifest import Codes

ANSWER_S = 600.0
"""Seconds within which the search answers a rank: Tune decides in milliseconds, and a population's members do not wait
for each other here."""
NO_FURTHER = "the search gave it no further interval"
Train = Any
"""(run, gate, trial, token) -> {"best": metrics, "best_step", "step"}: what trains a run."""


class AskToGoOn(Callback):
    """At each checkpoint with metrics of its step all ranks wait until the search lets the next interval begin."""

    def __init__(self, gate: Any, trial: str, token: str):
        self.gate, self.trial, self.token = gate, trial, token

    def fit_start(self, state: State) -> None:
        """A run that goes on says again what it said last: whoever asked may have died before hearing it."""
        if state.latest and state.latest_step == state.step:
            self._ask(state)

    def checkpointed(self, state: State) -> None:
        """The state that is committed is what another trial may go on from."""
        if state.latest_step == state.step:
            self._ask(state)

    def _ask(self, state: State) -> None:
        import torch
        import torch.distributed as dist

        nccl = dist.get_backend() == "nccl"
        stop = torch.zeros((), device="cuda" if nccl else "cpu")
        if dist.get_rank() == 0:
            best = {"best": dict(state.best), "best_step": state.best_step}
            values = {**state.latest, **best, "seconds": state.elapsed_s, "last": state.done}
            answer = self.gate.report.remote(self.trial, self.token, state.step, values)
            try:
                stop.fill_(ray.get(answer, timeout=ANSWER_S) == STOP)
            except (ray.exceptions.RayError, TimeoutError) as error:
                raise RunFailed(f"the search does not answer ({one_line(error)}). Start it again to go on") from error
        dist.broadcast(stop, src=0)
        if stop.item() and not state.done:
            state.stop = NO_FURTHER


def following_generation(entry: Entry, source: Entry, step: int, config: Mapping[str, Any], space: Space) -> Entry:
    """A population's member that takes another one's weights, with values near that one's, as a run of a new name."""
    drawn = {key: config[key] for key in space if key in config}
    spelled = {key: storable(value) for key, value in changes(space, drawn).items()}
    generation = int(entry.run.rpartition("-g")[2]) + 1 if "-g" in entry.run else 1
    run = f"{entry.name}-g{generation}"
    return replace(entry, drawn=drawn, changes=spelled, run=run, source=f"{source.run}@{step}")


def run_trial(
    train: Train, about: "tuple[Run, Space, Codes]", gate: Any, trial: str, token: str, **what: Any
) -> Mapping[str, Any]:
    """What the gate starts as a task: find out which run it is, and train it with `train`.

    `what`: `number` and `drawn`, and of a population's member that takes another one's place the pointer to that.
    """
    from rtrain.launch import manifest

    run, space, codes = about
    source = what["source"]
    journal = Journal(run, only={what["number"], *([source["number"]] if source else [])})
    entry = journal.entries[what["number"]]
    if source:
        of = journal.entries[source["number"]]
        entry = journal.write(following_generation(entry, of, source["step"], what["drawn"], space))
    own = run_of(run, space, entry)
    parent: dict[str, Any] = {"kind": "trial", "search": run.folder, "number": entry.number}
    if entry.source:
        name, _, step = entry.source.rpartition("@")
        fork(f"{own.storage}/{name}", int(step), own.folder)
        parent |= {"kind": "fork", "run": f"{own.storage}/{name}", "step": int(step)}
    Folder(own.folder).write_json("run.json", config.to_dict(own))  # a run like any other, for who looks at it
    number = manifest.begin(own, codes, parent=parent)
    try:
        found: Mapping[str, Any] = train(own, gate, trial, token)
    except BaseException as error:
        manifest.end(own, number, error)
        raise
    manifest.end(own, number, None)
    return found


def trained(run: Run, gate: Any, trial: str, token: str, *, timed: bool = False) -> dict[str, Any]:
    """Train a trial's run to its end, or to where the search stops it: a trial never sees the test split.

    `timed`: and measure how long the exported model takes to answer, where the trial is through.

    Raises:
        RuntimeError: it failed, in one line.
    """
    from rtrain.launch.ray_train import train_on_ray

    try:
        outcome = train_on_ray(run, listeners=[AskToGoOn(gate, trial, token)], test=False)
        latency = {LATENCY: latency_ms(run, outcome.best_step)} if timed and outcome.stop != NO_FURTHER else {}
    except RtrainError as error:
        raise RuntimeError(one_line(error)) from None
    return {"best": outcome.valid | latency, "best_step": outcome.best_step, STEP: outcome.steps}
