"""Checks of how good a candidate is: beside the champion on the same rows, in each slice, and its probabilities."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rtrain.errors import ConfigError
from rtrain.export.artifact import fewer_bits
from rtrain.metrics.names import is_of_slice, metric_of, spelled
from rtrain.metrics.paired import Side, paired_intervals
from rtrain.metrics.state import Scored, takes
from rtrain.release.judged import Decision, Finished, Judged
from rtrain.release.losses import interval_of_losses

NOBODY = "there is no champion to compare with"


@dataclass(frozen=True, kw_only=True)
class NotWorse:
    """A test metric is not worse than the champion's by more than a margin, as a paired bootstrap of the rows says.

    A test of non-inferiority: the worse end of the 95 % interval of the difference has to lie within the margin.
    """

    metric: str = ""
    """Such as `auc`; empty: the one that the candidate's run was judged by."""
    margin: float = 0.0
    """How much worse it may be, in the metric's unit."""

    def __post_init__(self) -> None:
        _margin(self.margin)
        if self.metric and metric_of(self.metric) is None:
            raise ConfigError(f"NotWorse.metric: there is no metric {self.metric!r}. Give one of the runs', as auc")

    def decide(self, of: Judged) -> Decision:
        """See `Check`."""
        name = self.metric or str(of.candidate.result["monitor"])
        check, champion = f"{name} not worse", of.champion
        if champion is None:
            return Decision(check, True, NOBODY, {})
        mine, theirs = (one.result["test"].get(name) for one in (of.candidate, champion))
        if mine is None or theirs is None:
            lacking = of.candidate.name if mine is None else champion.name
            return Decision(check, False, f"run {lacking!r} has no {name} of its test split", {})
        numbers = {"candidate": mine, "champion": theirs, "margin": self.margin}
        speaks = of.candidate.kind == "writes text"
        between = interval_of_losses if speaks else _interval
        interval, why = between(name, champion, of.candidate)
        if interval is None:
            return Decision(check, False, f"{mine:.4f} against {theirs:.4f}, but {why}", numbers)
        low, high = interval
        metric = metric_of(name)
        higher = metric is None or metric.higher_is_better
        said = f"{mine:.5f} against {theirs:.5f}: difference 95 % [{low:+.5f}, {high:+.5f}], margin {self.margin:g}"
        said += f" (of the test split's first {len(of.candidate.texts)} rows)" if speaks else ""
        lost, of_bits = lost_to_bits(name, of.candidate.head, higher)
        worst = (low if higher else -high) - lost
        numbers |= {"low": low, "high": high, "lost": lost}
        return Decision(check, bool(worst >= -self.margin), said + of_bits, numbers)


@dataclass(frozen=True, kw_only=True)
class SlicesNotWorse:
    """In no slice of the test split a metric is worse than the champion's by more than a margin.

    Of both as they were trained: what fewer bits cost is stated of all rows alone.
    """

    metric: str = ""
    """As of `NotWorse`."""
    margin: float = 0.01
    """How much worse it may be, in the metric's unit; slices are small, and this has no interval."""

    def __post_init__(self) -> None:
        _margin(self.margin)

    def decide(self, of: Judged) -> Decision:
        """See `Check`."""
        name = self.metric or str(of.candidate.result["monitor"])
        check = f"{name} of slices not worse"
        if of.champion is None:
            return Decision(check, True, NOBODY, {})
        mine, theirs = (_slices(name, one.result["test"]) for one in (of.candidate, of.champion))
        if lacking := sorted(theirs.keys() - mine.keys()):
            return Decision(check, False, f"the candidate tells nothing of {lacking[0]}, as the champion does", {})
        if not theirs:
            return Decision(check, True, "the champion tells of no slice (evaluation.slices)", {})
        metric = metric_of(name)
        sign = 1.0 if metric is None or metric.higher_is_better else -1.0
        gaps = {key: sign * (mine[key] - theirs[key]) for key in theirs}
        worst = min(gaps, key=lambda key: gaps[key])
        said = f"worst of {len(gaps)}: {worst} {mine[worst]:.4f} against {theirs[worst]:.4f}, margin {self.margin:g}"
        return Decision(check, gaps[worst] >= -self.margin, said, {"gap": gaps[worst], "slices": len(gaps)})


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The mean probability of each label is its share of the test rows, within a share of it."""

    most: float = 0.1
    """How far the two may be apart, as a share of the label's own."""

    def __post_init__(self) -> None:
        if not self.most > 0:
            raise ConfigError(f"Calibrated.most: must be above 0, got {self.most}")

    def decide(self, of: Judged) -> Decision:
        """See `Check`."""
        check = "calibrated"
        labels = {prefix: rows.scored for prefix, rows in of.candidate.rows.items() if type(rows.scored) is Scored}
        if of.candidate.kind != "ranks rows" or not labels:
            return Decision(check, True, "it gives no probabilities", {})
        ratios = {prefix: _ratio(scored) for prefix, scored in labels.items()}
        worst = max(ratios, key=lambda prefix: abs(ratios[prefix] - 1))
        of_label = f" of label {worst.rstrip('_')}" if worst else ""
        allowed = f"{max(0.0, 1 - self.most):g} to {1 + self.most:g}"
        said = f"mean probability{of_label} is {ratios[worst]:.3f} of its share; {allowed}"
        return Decision(check, abs(ratios[worst] - 1) <= self.most, said, {"ratio": ratios[worst]})


def _margin(margin: float) -> None:
    if not margin >= 0:
        raise ConfigError(f"margin: must be at least 0, got {margin}")


def lost_to_bits(name: str, head: Mapping[str, Any], higher: bool) -> tuple[float, str]:
    """By how much fewer bits make the metric worse than its run tells, which was judged as it was trained."""
    all_lost, said = 0.0, ""
    for part, stated in fewer_bits(head).items():
        several = part in ("tables", "weights")
        called = f"{stated['kept']} {part if several else 'dense part'}"
        if name not in stated:
            said += f"; of {part if several else 'a dense part'} as trained, not of {stated['kept']}"
            continue
        was, now = stated[name]
        lost = max(0.0, was - now if higher else now - was)
        all_lost += lost
        said += f", and {called} take{'' if several else 's'} {lost:.5f} more"
    return all_lost, said


def _interval(name: str, champion: Finished, candidate: Finished) -> tuple[tuple[float, float] | None, str]:
    """Of the candidate's metric minus the champion's; else why there is none."""
    before, after = champion.rows, candidate.rows
    prefix = max((p for p in after if name.startswith(p) and p in before), key=len, default=None)
    if prefix is None:
        return None, "the two runs kept no test rows of it to pair"
    a, b, metric = before[prefix], after[prefix], spelled(name.removeprefix(prefix))
    if not a.same_rows(b):
        return None, "the two were not scored on the same test rows. Train both on the same data and split"
    if metric is None or not takes(metric, type(a.scored)) or (metric.by_group and not a.grouped):
        return None, f"{name} is not measured row by row. Name another metric"
    between = paired_intervals(Side(a.scored, a.units), Side(b.scored, b.units), {name: metric})[name]
    return ((between.low, between.high), "") if between else (None, "too few rows for an interval")


def _slices(name: str, test: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in test.items() if is_of_slice(key) and key.partition("[")[0] == name}


def _ratio(scored: Scored) -> float:
    """Infinite where no row has the label: any probability is too much then."""
    share = float(np.mean(scored.labels))
    return float(np.mean(scored.probabilities)) / share if share else float("inf")
