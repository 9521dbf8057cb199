"""Who may train, interval by interval: the actor's own code, without Ray."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from rtrain.tuning import gate as module
from rtrain.tuning.gate import GO, STOP, Allowance, Gate


class Runs:
    """Runs that do what a test tells them."""

    def __init__(self) -> None:
        self.under_way: list[str] = []
        self.most = 0
        self.ends: dict[str, asyncio.Future[Mapping[str, Any]]] = {}
        self.cancelled: list[str] = []

    def start(self, *, trial: str, token: str) -> "Started":
        self.under_way.append(trial)
        self.most = max(self.most, len(self.under_way))
        self.ends[trial] = asyncio.get_running_loop().create_future()
        return Started(self, trial)

    def end(self, trial: str, **result: Any) -> None:
        self.under_way.remove(trial)
        self.ends[trial].set_result(result)

    def fail(self, trial: str, text: str) -> None:
        self.under_way.remove(trial)
        self.ends[trial].set_exception(RuntimeError(text))


class Started:
    def __init__(self, runs: Runs, trial: str):
        self.runs, self.trial = runs, trial

    def ended(self) -> Awaitable[Mapping[str, Any]]:
        return self.runs.ends[self.trial]

    def cancel(self) -> None:
        self.runs.cancelled.append(self.trial)
        self.runs.fail(self.trial, "cancelled")


def played(play: Callable[[Gate, Runs], Awaitable[None]], room: float = 2.0, **allowance: float) -> None:
    async def whole() -> None:
        runs = Runs()
        gate = Gate({"CPU": room}, Allowance(**allowance), runs.start)
        await asyncio.wait_for(play(gate, runs), 30)

    asyncio.run(whole())


def launch(gate: Gate, trial: str, cpus: float = 2.0, token: str = "t", seen: int = 0) -> "asyncio.Task[bool]":
    return asyncio.ensure_future(gate.launch(trial, token, {"CPU": cpus}, int(cpus), seen))


async def soon() -> None:
    """Let everything that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_an_interval_begins_when_the_trial_asks_for_its_report() -> None:
    async def play(gate: Gate, runs: Runs) -> None:
        assert await launch(gate, "a")
        heard = asyncio.ensure_future(gate.next("a", "t"))
        await soon()
        told = asyncio.ensure_future(gate.report("a", "t", 10, {"auc": 0.6}))
        assert await heard == {"report": {"step": 10, "auc": 0.6}}
        await soon()
        assert not told.done()  # Tune has not decided yet
        heard = asyncio.ensure_future(gate.next("a", "t"))
        assert await told == GO
        assert not heard.done()
        assert await gate.report("a", "t", 20, {"auc": 0.7, "last": True}) == GO  # there is nothing to wait for
        assert (await heard)["report"]["step"] == 20
        runs.end("a", auc=0.7)
        assert await gate.next("a", "t") == {"result": {"auc": 0.7}}
        await gate.drained()

    played(play)


def test_a_trial_that_tune_stops_ends_by_itself() -> None:
    async def play(gate: Gate, runs: Runs) -> None:
        await launch(gate, "a")
        heard = asyncio.ensure_future(gate.next("a", "t"))
        await soon()
        told = asyncio.ensure_future(gate.report("a", "t", 10, {"auc": 0.6}))
        await heard
        await gate.end("a", "another's")  # the process of an earlier start of the trial
        await soon()
        assert not told.done()
        await gate.end("a", "t")
        assert await told == STOP
        runs.end("a")
        await gate.drained()
        assert gate.free == {"CPU": 2.0}
        assert not runs.cancelled

    played(play)


def test_one_that_does_not_end_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAVE_S", 0.05)

    async def play(gate: Gate, runs: Runs) -> None:
        await launch(gate, "a")
        await gate.end("a")
        await gate.drained()
        assert runs.cancelled == ["a"]
        assert gate.free == {"CPU": 2.0}

    played(play)


def test_a_step_that_was_reported_is_not_told_twice() -> None:
    async def play(gate: Gate, runs: Runs) -> None:
        await launch(gate, "a", seen=10)
        heard = asyncio.ensure_future(gate.next("a", "t"))
        await soon()
        assert await gate.report("a", "t", 10, {"auc": 0.6}) == GO  # a run that was started again
        assert not heard.done()
        again = asyncio.ensure_future(gate.report("a", "t", 20, {"auc": 0.7}))
        assert (await heard)["report"]["step"] == 20
        again.cancel()

    played(play)


def test_first_come_first_served_and_a_wide_one_is_not_overtaken() -> None:
    async def play(gate: Gate, runs: Runs) -> None:
        assert await launch(gate, "a", 2)
        wide, narrow = launch(gate, "wide", 4), launch(gate, "narrow", 1)
        await soon()
        assert runs.under_way == ["a"]  # a narrow one would fit
        runs.end("a")
        assert await wide
        await soon()
        assert runs.under_way == ["wide"]
        runs.end("wide")
        assert await narrow
        assert runs.under_way == ["narrow"]

    played(play, room=4.0)


@pytest.mark.parametrize("seed", range(20))
def test_four_trials_at_once_where_two_have_room_all_finish(seed: int) -> None:
    """Schedules drawn by a seed: which run goes on next, which one is stopped, which one fails."""
    import random

    draw = random.Random(seed)

    async def trial(gate: Gate, runs: Runs, name: str) -> str:
        if not await gate.launch(name, "t", {"CPU": 2.0}, 2, 0):
            return "closed"
        stops_at = draw.choice([10, 20, 99])
        while True:
            heard = await gate.next(name, "t")
            if "report" not in heard:
                return next(iter(heard))
            if heard["report"]["step"] >= stops_at:
                await gate.end(name, "t")
                return "stopped"

    async def ranks(gate: Gate, runs: Runs, name: str) -> None:
        while name not in runs.under_way:
            await asyncio.sleep(0)
        fails_at = draw.choice([20, 99, 99])
        for step in (10, 20, 30):
            for _ in range(draw.randrange(5)):
                await asyncio.sleep(0)
            if step == fails_at:
                return runs.fail(name, "a rank died")
            if await gate.report(name, "t", step, {"last": step == 30}) == STOP:
                break
        runs.end(name)

    async def play(gate: Gate, runs: Runs) -> None:
        names = ["a", "b", "c", "d"]
        both = [work(gate, runs, name) for name in names for work in (trial, ranks)]
        ended = (await asyncio.gather(*both))[::2]
        assert set(ended) <= {"result", "error", "stopped"}
        assert runs.most <= 2
        await gate.drained()
        assert gate.free == {"CPU": 4.0}

    played(play, room=4.0)


def test_no_interval_begins_that_the_budget_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    async def play(gate: Gate, runs: Runs) -> None:
        await launch(gate, "a", 2)
        begun, step = 0, 0
        while True:
            heard = asyncio.ensure_future(gate.next("a", "t"))
            await soon()
            begun, step = begun + 1, step + 10
            clock[0] += 7.0  # an interval: 14 worker-seconds
            told = asyncio.ensure_future(gate.report("a", "t", step, {}))
            assert "report" in await heard
            await soon()
            if told.done():
                break
        assert told.result() == STOP
        assert begun == 7  # 98 of 100; an eighth would end at 112
        waiting = launch(gate, "b", 2)
        runs.end("a")
        assert not await waiting  # nothing new begins
        assert "closed" in await gate.next("a", "t")
        state = await gate.state()
        assert state["worker_seconds"] == 98.0
        assert state["closed"].startswith("cost: ")

    played(play, worker_seconds=100.0)


def test_a_run_that_has_not_begun_is_taken_to_last_as_long_as_an_earlier_starts_longest() -> None:
    async def play(gate: Gate, runs: Runs) -> None:
        assert not await launch(gate, "a")
        assert gate.closed.startswith("cost") and not runs.under_way
        assert (await gate.state())["longest"] == 60.0

    async def fits(gate: Gate, runs: Runs) -> None:
        assert await launch(gate, "a")

    played(play, worker_seconds=119.0, longest=60.0)  # of two workers
    played(fits, worker_seconds=121.0, longest=60.0)


def test_what_a_run_failed_with_is_told() -> None:
    async def play(gate: Gate, runs: Runs) -> None:
        await launch(gate, "a")
        heard = asyncio.ensure_future(gate.next("a", "t"))
        await soon()
        runs.fail("a", "rank 1:\n the loss is nan")
        assert await heard == {"error": "rank 1: the loss is nan"}
        assert await gate.failure("a") == "rank 1: the loss is nan"
        assert await gate.failure("b") == ""
        assert await launch(gate, "a", token="again")  # tried again: its place was given back
        assert await gate.report("a", "t", 10, {}) == STOP  # the ranks of the first try

    played(play)


def test_a_trials_number_is_that_of_its_first_config() -> None:
    async def play(gate: Gate, runs: Runs) -> None:
        assert await gate.number_of("a", 3) == 3
        assert await gate.number_of("a", 1) == 3  # it took another one's weights, and config with them

    played(play)
