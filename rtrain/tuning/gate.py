"""Who may train: one actor that starts each trial's run when the cluster has room, and lets it on interval by interval.

    Trial (Ray Tune)      Gate                          the run's ranks
    launch ------------>  first come, first served:
                          the head waits for room  ---> run begins
    next -------------->  waits for a report
                          <---------------------------  report (step, metrics), at a checkpoint; the ranks wait
    <- report
    next -------------->  ----------------------------> "go": the next interval begins
    end --------------->  ----------------------------> "stop": the ranks end by themselves

No run asks Ray for its workers before it has its place, so two that each hold half of what they need cannot be. A run
ends between two intervals, its checkpoint committed, so nothing is killed that holds workers. What a search may cost is
looked at before each interval.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

GO, STOP = "go", "stop"
LEAVE_S = 60.0
"""Seconds that a run gets to end by itself once it was told to."""
Needs = Mapping[str, float]
"""CPU, GPU: what a run takes of the cluster."""


class Started(Protocol):
    """A run under way."""

    def ended(self) -> Awaitable[Mapping[str, Any]]:
        """What came of it; raises what it failed with."""

    def cancel(self) -> None:
        """End it by force."""


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What a search may still take."""

    seconds: float | None = None
    """Of the search."""
    worker_seconds: float | None = None
    """Of all its workers."""
    longest: float = 0.0
    """Seconds of the longest interval of any earlier start: as long as a run may take that has not begun."""


@dataclass
class _Run:
    token: str
    needs: Needs
    workers: int
    seen: int
    """Step of the newest report."""
    began: float
    started: Started | None = None
    reports: deque[Mapping[str, Any]] = field(default_factory=deque)
    asked: bool = False
    """Whether the trial waits for the next report: so an interval may begin."""
    ended: bool = False
    """It was told to stop."""
    last: bool = False
    """Its newest report is that of its end."""
    over: bool = False
    result: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    since: float = 0.0
    """When its interval began."""
    longest: float = 0.0
    """Seconds of its longest interval so far."""


class Gate:
    """The actor; its methods are coroutines of one thread, so nothing here needs a lock."""

    def __init__(self, room: Needs, allowance: Allowance, start: Callable[..., Started]):
        """`room`: what all runs together may take. `start`: begins a run, given what `launch` is given."""
        self.free = dict(room)
        self.allowance, self.start = allowance, start
        self.runs: dict[str, _Run] = {}
        self.waiting: deque[object] = deque()
        self.numbers: dict[str, int] = {}
        self.closed = ""
        self.began = time.monotonic()
        self.worked = 0.0
        """Worker-seconds of runs that are over."""
        self.longest = allowance.longest
        """Seconds of the longest interval of any run."""
        self._changed = asyncio.Condition()
        self._tasks = set[asyncio.Task[None]]()

    async def number_of(self, trial: str, number: int) -> int:
        """A trial's number: what it said the first time that it asked."""
        return self.numbers.setdefault(trial, number)

    async def launch(self, trial: str, token: str, needs: Needs, workers: int, seen: int, **what: Any) -> bool:
        """Begin a trial's run once there is room and it is its turn; false when the search is over meanwhile."""
        await self.end(trial)  # that of a trial whose process died
        turn = object()
        self.waiting.append(turn)
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self.closed or self._is_next(turn, needs, trial))
        finally:
            self.waiting.remove(turn)
        self.closed = self.closed or self._too_much(None, workers)
        if self.closed:
            await self._tell()
            return False
        for kind, amount in needs.items():
            self.free[kind] -= amount
        now = time.monotonic()
        run = _Run(token, needs, workers, seen, began=now, since=now)
        self.runs[trial] = run
        run.started = self.start(trial=trial, token=token, **what)
        self._in_background(self._watch(run))
        await self._tell()
        return True

    def _is_next(self, turn: object, needs: Needs, trial: str) -> bool:
        before = self.runs.get(trial)
        room = all(self.free.get(kind, 0.0) >= amount - 1e-9 for kind, amount in needs.items())
        return self.waiting[0] is turn and room and (before is None or before.over)

    async def _watch(self, run: _Run) -> None:
        assert run.started is not None
        try:
            run.result = await run.started.ended()
        except Exception as error:
            run.error = " ".join(str(error).split()) or type(error).__name__
        run.over = True
        self.worked += run.workers * (time.monotonic() - run.began)
        for kind, amount in run.needs.items():
            self.free[kind] += amount
        await self._tell()

    async def next(self, trial: str, token: str) -> Mapping[str, Any]:
        """The next thing to know of a trial: {"report": ...}, {"result": ...}, {"error": ...} or {"closed": why}."""
        run = self.runs[trial]
        if run.token != token:
            return {"closed": "another process has the trial"}
        run.asked, run.since = True, time.monotonic()
        await self._tell()
        async with self._changed:
            await self._changed.wait_for(lambda: run.reports or run.over or (self.closed and not run.last))
        if run.reports:
            return {"report": run.reports.popleft()}
        if run.over and run.error:
            return {"error": run.error}
        if run.over and (run.last or not (run.ended or self.closed)):
            return {"result": run.result}
        return {"closed": self.closed or "told to stop"}

    async def report(self, trial: str, token: str, step: int, values: Mapping[str, Any]) -> str:
        """What a run's first rank says at a checkpoint with metrics; waits until the next interval may begin.

        A step that was reported before, by a run that was started again, is not told twice.
        """
        run = self.runs.get(trial)
        if run is None or run.token != token:
            return STOP
        now = time.monotonic()
        if step > run.seen:
            run.longest = max(run.longest, now - run.since)
            run.seen, run.asked = step, False
            run.reports.append({"step": step, **values})
            run.last = bool(values.get("last"))
            if run.last:  # there is nothing to wait for
                await self._tell()
                return GO
        self.longest = max(self.longest, run.longest)
        self.closed = self.closed or self._too_much(run)
        await self._tell()
        async with self._changed:
            await self._changed.wait_for(lambda: run.asked or run.ended or self.closed)
        return STOP if run.ended or self.closed else GO

    async def end(self, trial: str, token: str = "") -> None:
        """A trial's run has no further interval; returns at once. `token`: only that of this process."""
        run = self.runs.get(trial)
        if run is None or run.over or run.ended or (token and run.token != token):
            return
        run.ended = True
        self._in_background(self._cancel_later(run))
        await self._tell()

    async def _cancel_later(self, run: _Run) -> None:
        with suppress(TimeoutError):
            async with self._changed:
                await asyncio.wait_for(self._changed.wait_for(lambda: run.over), LEAVE_S)
        if not run.over and run.started is not None:
            run.started.cancel()

    async def failure(self, trial: str) -> str:
        """What a trial's newest run failed with; empty where it did not."""
        run = self.runs.get(trial)
        return run.error.rpartition("RuntimeError: ")[2][:300] if run else ""

    async def close(self, why: str) -> None:
        """No further interval of any trial begins."""
        self.closed = self.closed or why
        for trial in list(self.runs):
            await self.end(trial)
        await self._tell()

    async def drained(self) -> None:
        """Wait until no run is under way."""
        async with self._changed:
            await self._changed.wait_for(lambda: all(run.over for run in self.runs.values()))

    async def state(self) -> Mapping[str, Any]:
        """Why it is closed, seconds of this start, worker-seconds, and how many runs are under way."""
        under_way = [run for run in self.runs.values() if not run.over]
        return {
            "closed": self.closed,
            "seconds": time.monotonic() - self.began,
            "worker_seconds": self._worker_seconds(),
            "longest": self.longest,
            "running": len(under_way),
        }

    def _worker_seconds(self) -> float:
        now = time.monotonic()
        return self.worked + sum(run.workers * (now - run.began) for run in self.runs.values() if not run.over)

    def _too_much(self, asking: _Run | None, workers: int = 0) -> str:
        """Why one more interval, as long as the longest so far, is beyond what the search may take.

        `asking`: whose interval it is; none: of a run of so many `workers` that has not begun.
        """
        seconds, worker_seconds = self.allowance.seconds, self.allowance.worker_seconds
        longest = asking.longest if asking else self.longest
        if seconds is not None and time.monotonic() - self.began + longest > seconds:
            return "hours: the next interval would end after those that the search has"
        if worker_seconds is not None:
            under_way = [run for run in self.runs.values() if not run.over]
            coming = sum(run.workers * run.longest for run in under_way) + workers * longest
            if self._worker_seconds() + coming > worker_seconds:
                return "cost: the next intervals would cost more than the search may"
        return ""

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _in_background(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # asyncio itself holds it weakly
        task.add_done_callback(self._tasks.discard)
