"""Where the time of the loop goes: data, forward, backward, optimizer, communication in them, and what lies between.

A pipeline runs forward and backward passes side by side, so there both are one phase, `pipeline`.
Every step's phases are timed (by CUDA events on a GPU, so that nothing waits). Communication runs
inside the phases, so it is measured on a few sampled steps with torch's profiler: the share of each
phase in which a collective was under way, which is then booked as communication instead. The sampled
steps themselves are slowed down by the profiler, so they are a part of their own, `sampling`.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile, record_function

PHASES = ("data", "forward", "backward", "pipeline", "optimizer")
BETWEEN = ("evaluation", "records", "sampling")
COLLECTIVE = ("gloo:", "nccl:")
MARK = "rtrain:"


class Stopwatch:
    """Sums the time of the phases, and samples the communication inside them."""

    def __init__(
        self,
        device: torch.device,
        *,
        sample_from: int = 10,
        sample_steps: int = 5,
        entered: Callable[[str], object] = lambda phase: None,
        elsewhere: Callable[[], float] = lambda: 0.0,
    ):
        """`elsewhere`: seconds so far that someone else counts (the saver), so that the sampling does not too."""
        self.device = device
        self.elsewhere = elsewhere
        self.entered = entered
        """Told of each phase as it begins: the watchdog's."""
        self._totals: dict[str, float] = defaultdict(float)
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._between: dict[str, float] = dict.fromkeys(BETWEEN, 0.0)
        self._sampled_at = self._before_sample = 0.0
        self._steps = 0
        self._sample = range(sample_from, sample_from + sample_steps)
        self._profile: profile | None = None
        self.shares: dict[str, float] = {}
        """Phase -> share of its time in which a collective was under way; empty until measured."""

    def begin_step(self) -> None:
        """Call before each step: starts and ends the sampling when it is time."""
        self._steps += 1
        if self._steps == self._sample.start:
            self._sampled_at, self._before_sample = time.perf_counter(), self._counted()
            on_gpu = [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *on_gpu])
            self._profile.start()
        elif self._steps == self._sample.stop:
            self._end_sample()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The time of the block belongs to phase `name`; a sampled step's only counts for the shares."""
        self.entered(name)
        if self._profile is not None:
            with record_function(MARK + name):
                yield
        elif self.device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._pending.append((name, begin, end))
            if len(self._pending) >= 4096:
                self._settle()
        else:
            began = time.perf_counter()
            yield
            self._totals[name] += time.perf_counter() - began

    @contextmanager
    def between(self, name: str, doing: str = "") -> Iterator[None]:
        """The time of the block, on this host's clock, is no part of a step: one of BETWEEN. `doing`: as `entered`."""
        if doing:
            self.entered(doing)
        began = time.perf_counter()
        yield
        self._between[name] += time.perf_counter() - began

    def close(self) -> None:
        """End a sample that is under way: a process that exits with its profiler running crashes."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _settle(self) -> None:
        torch.cuda.synchronize()
        for name, begin, end in self._pending:
            self._totals[name] += begin.elapsed_time(end) / 1000
        self._pending.clear()

    def _end_sample(self) -> None:
        if self._profile is None:
            return
        self._profile.stop()
        phases: dict[str, list[tuple[float, float]]] = defaultdict(list)
        collectives: list[tuple[float, float]] = []
        for event in self._profile.events() or ():
            span = (event.time_range.start, event.time_range.end)
            if event.name.startswith(MARK):
                phases[event.name.removeprefix(MARK)].append(span)
            elif event.name.startswith(COLLECTIVE):
                collectives.append(span)
        self._profile = None
        busy = _merge(collectives)
        for name, spans in phases.items():
            length = sum(end - begin for begin, end in spans)
            inside = sum(max(0.0, min(e, be) - max(b, bb)) for b, e in spans for bb, be in busy)
            self.shares[name] = inside / length if length else 0.0
        # What lay between the sampled steps has been counted where it belongs.
        counted = self._counted() - self._before_sample
        self._between["sampling"] += max(0.0, time.perf_counter() - self._sampled_at - counted)

    def _counted(self) -> float:
        return sum(self._between.values()) + self.elsewhere()

    def breakdown(self) -> dict[str, float]:
        """Seconds by data, forward, backward, optimizer and communication, over all unsampled steps; and of BETWEEN."""
        self._end_sample()
        if self._pending:
            self._settle()
        seconds = {n: self._totals.get(n, 0.0) for n in PHASES if n != "pipeline" or n in self._totals}
        parts = {name: s * (1 - self.shares.get(name, 0.0)) for name, s in seconds.items()}
        parts["communication"] = sum(seconds.values()) - sum(parts.values())
        return parts | self._between


def _merge(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged
