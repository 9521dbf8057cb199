"""The training loop. Its events, in order, are in `rtrain.training.events`."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist

from rtrain.data.cursor import Cursor
from rtrain.data.protocol import AnyBatch
from rtrain.duration import CLOCK
from rtrain.errors import RunFailed
from rtrain.ledger.record import Ledger
from rtrain.run import Run
from rtrain.training.breakdown import Stopwatch
from rtrain.training.events import Callback, State, TrainPoint
from rtrain.training.preemption import Notice, Preempted
from rtrain.training.ready import Given, arrived
from rtrain.training.replica import Replica

Batches = Iterator[tuple[Given, Cursor]]


def fit(
    run: Run,
    state: State,
    replica: Replica,
    batches: Batches,
    callbacks: Callback,
    *,
    ledger: Ledger,
    evaluate: Callable[[], dict[str, float]],
    save: Callable[[bool], Sequence[State]],
    watch: Stopwatch,
    notice: Notice,
) -> None:
    """Train until `state.done`; a collective over all ranks.

    A checkpoint is written as `checkpoint.every` says, at each new best evaluation (so that the
    best step always has one) and at the end. Evaluation comes before the checkpoint of its step,
    so that a resume never evaluates a step twice. `save(now)` begins one, or, with `now`, returns
    when it is committed; it gives the states of the checkpoints whose commit it has seen.

    Raises:
        RunFailed: the loss is not finite.
        Preempted: some rank was given notice; a checkpoint of the last step is committed.
    """
    window, ahead = _Window(state, replica, notice, run), _Ahead(batches, replica.world.device)
    began, before = time.perf_counter(), state.elapsed_s
    callbacks.fit_start(state)
    while not state.done:
        watch.begin_step()
        with watch.phase("data"):
            batch, cursor, rows = ahead.take()
            upcoming = ahead.peek() if run.parallel.overlap and state.step + 1 < state.total_steps else None
        loss = replica.forward_backward(
            batch, step=state.step, total_steps=state.total_steps, watch=watch, upcoming=upcoming
        )
        with watch.between("records", "callbacks"):
            callbacks.gradients_ready(state, replica.gradients)
        replica.update(step=state.step, total_steps=state.total_steps, watch=watch)
        window.add(loss, batch)
        ledger.record(state.cursor.epoch, rows)
        earlier = replace(state)
        state.step, state.cursor = state.step + 1, cursor
        state.elapsed_s = before + time.perf_counter() - began

        point = None
        if state.step % run.log_every_steps == 0 or state.done:
            point = window.close(run, state, replica)
        with watch.between("records", "callbacks"):
            callbacks.step_end(state, point)

        improved = False
        if state.done or run.evaluation.every.due(earlier, state) or "evaluation" in window.due:
            with watch.between("evaluation", "evaluation"):
                values = evaluate()
            improved = judge(run, state, values)
            with watch.between("records"):
                callbacks.evaluated(state, values)
            window.did("evaluation")
        due = improved or run.checkpoint.every.due(earlier, state) or "checkpoint" in window.due
        if due or state.done or window.told_to_stop:
            with watch.between("records", "checkpoint"):
                callbacks.saving(state)
            window.keep(state)
            for saved in save(state.done or window.told_to_stop):
                callbacks.checkpointed(saved)
                state.stop = state.stop or saved.stop  # that state is a copy: of the checkpoint's moment
            window.did("checkpoint")
        if not state.done:
            window.obey(state)
    replica.drop_upcoming()
    callbacks.fit_end(state)


def judge(run: Run, state: State, values: Mapping[str, float]) -> bool:
    """Whether `values`, of this step, are the best so far; sets `state.stop` when patience has run out.

    Every rank has the same exact values, so every rank decides the same.
    """
    state.latest, state.latest_step = dict(values), state.step
    monitor = run.evaluation.monitor
    new, old = values[monitor], state.best.get(monitor)
    if old is None or old != old or (new > old if run.monitored.higher_is_better else new < old):
        state.best, state.best_step, state.stale = dict(values), state.step, 0
        return True
    state.stale += 1
    patience = run.evaluation.patience
    if patience is not None and state.stale >= patience:
        state.stop = f"no better {monitor} in {state.stale} evaluations"
    return False


class _Ahead:
    """Batches on the device, of which the next can be looked at.

    Positions are those of batches that were taken, so that a checkpoint knows nothing of it. What goes wrong with it is
    told a step early: a rank that went on without it would leave the others waiting for its ids.
    """

    def __init__(self, batches: Batches, device: torch.device):
        self._batches, self._device = batches, device
        self._next: tuple[AnyBatch, Cursor, torch.Tensor] | None = None

    def take(self) -> tuple[AnyBatch, Cursor, torch.Tensor]:
        """The next batch, its position, and its rows on the host: there the ledger costs no wait for the device."""
        there, self._next = self._next, None
        return there or self._read()

    def peek(self) -> AnyBatch:
        """The batch that `take` will give."""
        self._next = self._next or self._read()
        return self._next[0]

    def _read(self) -> tuple[AnyBatch, Cursor, torch.Tensor]:
        given, cursor = next(self._batches)
        host, batch = arrived(given, self._device)
        return batch, cursor, host.row


class _Window:
    """Loss and rate since the last point, without a collective or a device wait per step.

    What one rank alone knows (a signal, rank 0's clock) travels with the sums of a point, so that all
    ranks act on it at the same step.
    """

    def __init__(self, state: State, replica: Replica, notice: Notice, run: Run):
        self.replica, self.leads, self.notice = replica, replica.world.leads, notice
        self.told_to_stop = False
        self.due = set[str]()
        """Whose clock has run out: that of the next "evaluation", of the next "checkpoint", of the "end"."""
        self.seconds = {"evaluation": run.evaluation.every.seconds, "checkpoint": run.checkpoint.every.seconds}
        self.since = dict.fromkeys(self.seconds, time.perf_counter())
        self.seconds["end"], self.since["end"] = run.duration.seconds, time.perf_counter() - state.elapsed_s
        self.loss = torch.zeros((), device=replica.world.device, dtype=torch.float64)
        self._begin_with(state.window_loss)
        self.units, self.timed_rows = state.window_units, 0
        self.began = time.perf_counter()

    def _begin_with(self, loss: float) -> None:
        """Rank 0 holds what all ranks together have."""
        self.loss.fill_(loss if self.leads else 0.0)

    def keep(self, state: State) -> None:
        """Put the sums into the state of a checkpoint, so that a resume draws the very same curve."""
        state.window_loss, state.window_units = self._total(state)[0], self.units
        self._begin_with(state.window_loss)

    def _total(self, state: State) -> tuple[float, set[str]]:
        """The loss over all ranks, and whose clock has run out.

        Neither a point nor a checkpoint is made of what is not finite.
        """
        now = time.perf_counter()
        over = [self.leads and now - self.since[what] >= (s or math.inf) for what, s in self.seconds.items()]
        flags = [self.notice.given, self.replica.skipped, *over]
        sums = torch.cat([self.loss.reshape(1), torch.tensor(flags, dtype=torch.float64, device=self.loss.device)])
        dist.all_reduce(sums)
        total, stop, skipped, *clocks = sums.tolist()
        self.told_to_stop = stop > 0
        if not math.isfinite(total):
            raise RunFailed(
                f"the loss is {total} at step {state.step}. Lower optim.lr or sparse_optim.lr, or set "
                "optim.clip_norm, and start anew with --fresh or under another name"
            )
        if skipped:
            raise RunFailed(
                f"the gradients are not finite at step {state.step} or before, though the loss is: DeepSpeed left some "
                "out. Look at what the objective makes of rows that only pad; or lower optim.lr or sparse_optim.lr"
            )
        return float(total), {what for what, over in zip(self.seconds, clocks, strict=True) if over > 0}

    def did(self, what: str) -> None:
        """It has been done, and begins anew; the rate is of training, not of that."""
        self.since[what] = time.perf_counter()
        self.due.discard(what)
        self.restart()

    def obey(self, state: State) -> None:
        """Stop where some rank was told to, once the checkpoint is there."""
        if self.told_to_stop:
            self.replica.drop_upcoming()
            raise Preempted(
                f"told to stop (SIGTERM); the checkpoint of step {state.step} is committed. "
                "The same command resumes from there"
            )

    def add(self, loss: torch.Tensor, batch: AnyBatch) -> None:
        self.loss += loss
        self.units += self.replica.units
        self.timed_rows += batch.global_rows

    def restart(self) -> None:
        self.timed_rows, self.began = 0, time.perf_counter()

    def close(self, run: Run, state: State, replica: Replica) -> TrainPoint:
        total, self.due = self._total(state)
        if "end" in self.due and not state.done:
            state.stop = f"{CLOCK}: {run.duration.seconds:g} s are over"
        seconds = time.perf_counter() - self.began
        factor = run.optim.schedule.factor(state.step - 1, state.total_steps)
        point = TrainPoint(
            loss=total / self.units,
            examples_per_s=self.timed_rows / seconds if seconds > 0 else 0.0,
            lr=run.optim.lr * factor,
            grad_norm=replica.grad_norm,
        )
        self.loss.zero_()
        self.units = 0
        self.restart()
        return point
