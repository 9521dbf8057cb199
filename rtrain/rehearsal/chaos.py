"""`chaos`: failures brought about in this very run, each beside an undisturbed twin, and what they cost.

Every failure trains the run anew under a name of its own, with one failure at one step. What comes out is held
against the twin's losses and metrics, and the sample ledger is held against the data.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from rtrain.api import Name, Result, absolute, train
from rtrain.checkpoint import fence
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored
from rtrain.errors import ConfigError, RtrainError, RunFailed, one_line
from rtrain.ledger.proof import account, lost_beside
from rtrain.rehearsal.folders import ending_an_epoch, refuse_foreign, replace_earlier
from rtrain.run import FailureKind, Handoff, Injection, Run
from rtrain.storage import Folder
from rtrain.tracking import Tracking
from rtrain.training import history
from rtrain.training.agreement import open_data
from rtrain.training.injection import NOTE

KINDS: tuple[FailureKind, ...] = get_args(FailureKind)
HARMLESS = ("slow-rank",)
"""Kinds after which no attempt begins anew."""
HANG_S = 20.0
"""A rehearsal does not wait as long for a hang as a run."""


@dataclass(frozen=True)
class Failure:
    """What one failure cost."""

    kind: str
    step: int
    rank: int
    detected_s: float | None
    """Until a surviving rank, or else the next attempt, had said so; none where nothing had to be noticed."""
    recovered_s: float | None
    """Until training went on; none where it never stopped."""
    steps_repeated: int
    samples_lost: int
    samples_repeated: int
    max_loss_diff: float
    """Largest difference of a step's loss from the undisturbed twin's."""
    final_metric_diff: float
    """Largest difference of a test metric."""
    verdict: str
    """"same", "differs", or why the run could not be finished."""


@dataclass(frozen=True)
class Chaos:
    """The table of `rtrain chaos`."""

    run: str
    steps: int
    rows: int
    """Rows of an epoch; fewer than the run's own where its steps would have ended none."""
    epochs: int
    """Epochs that ended, by the twin's ledger: of these the data itself says that no sample is missing."""
    seed: int
    failures: tuple[Failure, ...]

    @property
    def holds(self) -> bool:
        """Whether every failure left losses, metrics and samples as if it had not been."""
        return all(f.verdict == "same" for f in self.failures)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        return asdict(self)

    def __str__(self) -> str:
        head = (
            f"{'failure':<20} {'step':>5} {'rank':>4} {'detected':>9} {'recovered':>9} {'repeated':>8} "
            f"{'lost':>5} {'twice':>5} {'loss diff':>9} {'test diff':>9}  verdict"
        )
        lines = [f"{self.run}: {self.steps} steps, each failure beside an undisturbed twin (seed {self.seed})"]
        if self.epochs:
            lines.append(f"epochs that ended: {self.epochs}, of {self.rows} rows, each held against the data")
        else:
            lines.append(f"NO epoch of {self.rows} rows ended: samples are held against the twin's alone")
        lines += ["", head]
        for f in self.failures:
            detected, recovered = ("-" if s is None else f"{s:.1f} s" for s in (f.detected_s, f.recovered_s))
            lines.append(
                f"{f.kind:<20} {f.step:>5} {f.rank:>4} {detected:>9} {recovered:>9} {f.steps_repeated:>8} "
                f"{f.samples_lost:>5} {f.samples_repeated:>5} {f.max_loss_diff:>9.1e} {f.final_metric_diff:>9.1e}"
                f"  {f.verdict}"
            )
        return "\n".join(lines)


def chaos(
    run: Run,
    *,
    kinds: Sequence[FailureKind] = KINDS,
    seed: int = 0,
    launcher: Name = "ray",
    say: Callable[[str], None] = lambda _: None,
) -> Chaos:
    """Train `run` undisturbed and once with each failure, at a step and on a rank that `seed` draws.

    The runs are named NAME-chaos-KIND and replace those of an earlier rehearsal. Where the run's steps
    end no epoch, they are trained on the last rows alone, so that one does.

    Raises:
        ConfigError: a run that cannot come back by itself, or is too short to be disturbed; or such a name
            holds a run that is no rehearsal.
        RtrainError: the undisturbed run could not be finished.
    """
    if launcher != "ray":
        raise ConfigError(f"chaos: launcher {launcher!r} restarts no worker. Use Ray")
    if run.faults.max_failures < 1:
        raise ConfigError("chaos: faults.max_failures is 0, so the first failure ends the run. Set it to 1 or more")
    run = replace(run, log_every_steps=1, tracking=Tracking(to=()), handoff=Handoff(export=False, serve_check=False))
    for kind in ("none", *kinds):
        refuse_foreign(_named(run, kind))
    run = _on_enough_rows(absolute(run), say)
    from rtrain.launch.session import ray_session

    with ray_session(run.cluster):
        say("the undisturbed twin")
        calm = _named(run, "none")
        result = _train(calm)
        assert result is not None, "only other ranks of torchrun get none"
        steps, metrics = int(result.values["steps"]), result.metrics
        # The first ones may have been pruned by now, and an evaluation may have written one before its time.
        earliest = CheckpointFolders(calm.folder).committed()[0] + 1
        if run.checkpoint.every.steps is not None:
            earliest = min(earliest, run.checkpoint.every.steps + 1)
        if earliest >= steps:
            raise ConfigError(
                f"chaos: {run.name!r} has {steps} steps and its first checkpoint at step {earliest - 1}, so no failure "
                "can come between. Lower checkpoint.every"
            )
        proved = account(calm.folder, verify=True)
        if not proved.holds:
            raise RunFailed(
                f"chaos: {calm.name!r}, though undisturbed, lost or repeated samples: nothing can be held to it"
            )
        losses = _losses(calm)
        failures = []
        draw = random.Random(seed)
        for kind in kinds:
            injection = Injection(kind=kind, step=draw.randrange(earliest, steps), rank=draw.randrange(64))
            injection = replace(injection, rank=injection.rank % run.cluster.workers)
            say(f"{kind} at step {injection.step}, rank {injection.rank}")
            failures.append(_one(run, calm, injection, losses, metrics))
    rows, ended = open_data(run).rows("train"), sum(epoch.complete for epoch in proved.epochs)
    return Chaos(run.name, steps, rows, ended, seed, tuple(failures))


def _on_enough_rows(run: Run, say: Callable[[str], None]) -> Run:
    rows = open_data(run).rows("train")
    cut = ending_an_epoch(run, rows)
    if cut != run:
        say(
            f"{run.total_steps(rows)} steps end no epoch of {rows} rows, so every rehearsal trains on the last "
            f"{cut.data.train_rows} (data.train_rows)"
        )
    return cut


def _named(run: Run, kind: str) -> Run:
    return replace(run, name=f"{run.name}-chaos-{kind}")


def _train(run: Run) -> Result | None:
    replace_earlier(run)
    return train(run, quiet=True)


def _one(
    run: Run, twin: Run, injection: Injection, losses: Mapping[int, float], metrics: Mapping[str, float]
) -> Failure:
    hang_s = min(HANG_S, run.faults.hang_s) if injection.kind == "hang" else run.faults.hang_s
    faults = replace(run.faults, inject=injection, hang_s=hang_s)
    run = replace(_named(run, injection.kind), faults=faults)
    problem = ""
    result = None
    try:
        result = _train(run)
    except RtrainError as error:
        problem = one_line(error)
    folder = Folder(run.folder)
    if not folder.exists(NOTE):
        raise RunFailed(f"chaos: {injection.kind} never came about{f': {problem}' if problem else ''}")
    note = folder.read_json(NOTE)
    detected, recovered, repeated = _recovery(run, note)
    nan = float("nan")
    failure = Failure(
        kind=note["kind"],
        step=note["step"],
        rank=note["rank"],
        detected_s=detected,
        recovered_s=recovered,
        steps_repeated=repeated,
        samples_lost=0,
        samples_repeated=0,
        max_loss_diff=nan,
        final_metric_diff=nan,
        verdict=problem,
    )
    if result is None:
        return failure
    own = _losses(run)
    samples = account(run.folder, verify=True).to_json()
    # Of an epoch that is still open only the twin knows which samples belong to it.
    lost = lost_beside(_last(run), _last(twin))
    loss = max(abs(own.get(step, nan) - value) for step, value in losses.items())
    metric = max(abs(result.metrics[name] - value) for name, value in metrics.items())
    came_back = (result.values["attempts"] == 1) == (injection.kind in HARMLESS)
    twice = samples["samples_repeated"]
    same = own.keys() == losses.keys() and not (loss or metric or lost or twice) and samples["holds"]
    verdict = "same" if same else "differs"
    return replace(
        failure,
        samples_lost=lost,
        samples_repeated=twice,
        max_loss_diff=loss,
        final_metric_diff=metric,
        verdict=verdict if came_back else f"the run had {result.values['attempts']} attempts",
    )


def _recovery(run: Run, note: Mapping[str, Any]) -> tuple[float | None, float | None, int]:
    """Seconds until it was noticed and until training went on, and the steps that were taken again."""
    lines = history.read(Folder(run.folder))
    after = [line for line in lines if line.get("at", 0.0) > note["at"]]
    again = next((line for line in after if line["kind"] == "start"), None)
    begun = [at for at in fence.beginnings(CheckpointFolders(run.folder)) if at > note["at"]]
    heard = [line["at"] for line in after if line["kind"] == "event"] + begun
    detected = min(heard) - note["at"] if heard else None
    if again is None:
        return detected, None, 0
    return detected, again["at"] - note["at"], note["step"] - again["step"]


def _last(run: Run) -> Stored:
    """The checkpoint of a finished run's last step."""
    folders = CheckpointFolders(run.folder)
    step = max(folders.committed())
    return Stored(folders.of(step), step)


def _losses(run: Run) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in history.read(Folder(run.folder)) if line["kind"] == "train"}
