"""Checks of how good a candidate is: beside the champion on the same rows, in each slice, and its probabilities."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rtrain.errors import ConfigError, RtrainError, one_line
from rtrain.evaluation.columns import Columns, slices_of
from rtrain.export.artifact import fewer_bits
from rtrain.metrics.names import is_of_slice, metric_of, spelled
from rtrain.metrics.paired import Side, paired_intervals
from rtrain.metrics.state import Scored, takes
from rtrain.release.judged import Decision, Judged
from rtrain.release.losses import interval_of_losses

NOBODY = "there is no champion to compare with"


@dataclass(frozen=True, kw_only=True)
class NotWorse:
    """A test metric is not worse than the champion's by more than a margin, as a paired bootstrap of the rows says.

    A test of non-inferiority: the worse end of the 95 % interval of the difference has to lie within the margin. Of a
    champion that was tested by other rows the export is asked for the candidate's (`rtrain.release.both`).
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
        between = _of_texts if of.candidate.kind == "writes text" else _of_rows
        found = between(name, of, mine, theirs)
        if isinstance(found, str):
            numbers = {"candidate": mine, "champion": theirs, "margin": self.margin}
            return Decision(check, False, f"{mine:.4f} against {theirs:.4f}, but {found}", numbers)
        metric = metric_of(name)
        higher = metric is None or metric.higher_is_better
        of_what = f" ({found.of})" if found.of else ""
        said = f"{found.mine:.5f} against {found.theirs:.5f}: difference 95 % [{found.low:+.5f}, {found.high:+.5f}], "
        said += f"margin {self.margin:g}{of_what}"
        lost, of_bits = lost_to_bits(name, of.candidate.head, higher)
        worst = (found.low if higher else -found.high) - lost
        numbers = {"candidate": found.mine, "champion": found.theirs, "margin": self.margin}
        numbers |= {"low": found.low, "high": found.high, "lost": lost}
        passed = bool(worst >= -self.margin)
        if not passed and found.low < 0 < found.high:
            of_bits += "; it may be as good: more test rows would tell, or allow a margin (rtrain gate --margin)"
        return Decision(check, passed, said + of_bits, numbers)


@dataclass(frozen=True, kw_only=True)
class SlicesNotWorse:
    """In no slice of the test split a metric is worse than the champion's by more than a margin.

    The candidate's is of the model as it was trained: what fewer bits cost is stated of all rows alone. So is the
    champion's, unless it was tested by other rows: then its export says it (`rtrain.release.both`).
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
        try:
            mine, theirs, of_what = _slices(name, of)
        except RtrainError as error:
            return Decision(check, False, one_line(error), {})
        if lacking := sorted(theirs.keys() - mine.keys()):
            return Decision(check, False, f"the candidate tells nothing of {lacking[0]}, as the champion does", {})
        if not theirs:
            return Decision(check, True, "the champion tells of no slice (evaluation.slices)", {})
        metric = metric_of(name)
        sign = 1.0 if metric is None or metric.higher_is_better else -1.0
        gaps = {key: sign * (mine[key] - theirs[key]) for key in theirs}
        worst = min(gaps, key=lambda key: gaps[key])
        said = f"worst of {len(gaps)}: {worst} {mine[worst]:.4f} against {theirs[worst]:.4f}, margin {self.margin:g}"
        said += f" ({of_what})" if of_what else ""
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
        passed = abs(ratios[worst] - 1) <= self.most
        said += "" if passed else "; of a few steps hardly any is: train on, or allow more (rtrain gate --calibration)"
        return Decision(check, passed, said, {"ratio": ratios[worst]})


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


@dataclass(frozen=True)
class _Apart:
    """A metric of both, and between which its difference lies: the candidate's minus the champion's."""

    mine: float
    theirs: float
    low: float
    high: float
    of: str = ""
    """Of which rows, if not of all that both were tested by."""


def _of_texts(name: str, of: Judged, mine: float, theirs: float) -> "_Apart | str":
    assert of.champion is not None
    interval, why = interval_of_losses(name, of.champion, of.candidate)
    of_what = f"of the test split's first {len(of.candidate.texts)} rows" if interval else ""
    return _Apart(mine, theirs, *interval, of_what) if interval else why


def _of_rows(name: str, of: Judged, mine: float, theirs: float) -> "_Apart | str":
    """Of the rows that both were tested by, or of the candidate's, scored anew; else why there is none."""
    assert of.champion is not None
    rows = of.candidate.rows
    prefix = _prefix(name, of)
    if prefix is None:
        return "the candidate's run kept no test rows of it to pair"
    metric = spelled(name.removeprefix(prefix))
    if metric is None or not takes(metric, type(rows[prefix].scored)) or (metric.by_group and not rows[prefix].grouped):
        return f"{name} is not measured row by row. Name another metric"
    try:
        a, b, said = of.both.sides(prefix)
    except RtrainError as error:
        return one_line(error)
    if said:
        theirs, mine = (_value(metric, side.scored) for side in (a, b))
    between = paired_intervals(Side(a.scored, a.units), Side(b.scored, b.units), {name: metric})[name]
    if between is None:
        return "too few rows for an interval"
    return _Apart(mine, theirs, between.low, between.high, said)


def _prefix(name: str, of: Judged) -> str | None:
    """Of the label that a metric is of."""
    return max((prefix for prefix in of.candidate.rows if name.startswith(prefix)), key=len, default=None)


def _value(metric: Any, scored: Any) -> float:
    return float(metric.weighted(scored)(np.ones(len(scored.labels))))


def _slices(name: str, of: Judged) -> tuple[dict[str, float], dict[str, float], str]:
    """The metric in each slice, of the candidate and of the champion; and of which rows, if not of their test splits.

    Raises:
        RtrainError: the champion cannot be asked for the candidate's test rows.
    """
    assert of.champion is not None
    mine, theirs = (
        {key: value for key, value in one.result["test"].items() if is_of_slice(key) and key.partition("[")[0] == name}
        for one in (of.candidate, of.champion)
    )
    prefix = _prefix(name, of)
    by = tuple(dict.fromkeys(column for one in (of.champion, of.candidate) for column in one.run.evaluation.slices))
    metric = None if prefix is None else spelled(name.removeprefix(prefix))
    if prefix is None or metric is None or not by or of.both.tested_alike(prefix):
        return mine, theirs, ""
    of.candidate.dataset.refuse_columns(by, "slices")
    *sides, said = of.both.sides(prefix)
    found: list[dict[str, float]] = []
    for side in sides:
        columns = Columns(of.candidate.dataset, "test")
        first = of.candidate.dataset.numbers("test").start
        numbered = replace(side.scored, rows=np.asarray(side.scored.rows) + first)
        values = {f"{name}{one.name}": _value(metric, one.of(numbered, columns)) for one in slices_of(by, columns)}
        found.append({key: value for key, value in values.items() if np.isfinite(value)})
    return found[1], {key: value for key, value in found[0].items() if key in found[1]}, said


def _ratio(scored: Scored) -> float:
    """Infinite where no row has the label: any probability is too much then."""
    share = float(np.mean(scored.labels))
    return float(np.mean(scored.probabilities)) / share if share else float("inf")
