"""Metrics as summable state: each rank measures its own rows, states are added, the sum gives the value.

So a metric over several ranks, or over a stream of batches, is the metric of all the rows together,
never a mean of means.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from inspect import signature
from typing import Any, ClassVar, Protocol, get_args, get_type_hints, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rtrain.errors import ConfigError

Floats = NDArray[np.float64]


@runtime_checkable
class RowByRow(Protocol):
    """A kind of what models give that is rows, each with an output and a label, and can be kept in a file as such."""

    kind: ClassVar[str]
    """Its name in that file."""
    drawn: ClassVar[bool]
    """Whether there are curves of its logits (`rtrain.metrics.shape`)."""
    numbers_queries: ClassVar[bool]
    """Whether a row's number is its query's, so that rows of one number belong together."""

    @property
    def labels(self) -> Floats:
        """float64 [n]"""

    @property
    def rows(self) -> NDArray[np.int64] | None:
        """int64 [n]: the row's number in its data set, where it is known"""

    def stored(self) -> dict[str, NDArray[Any]]:
        """Row, output, label, group and item, each [n]; 0 where there is no item. The rows' numbers are known."""

    def identity(self, units: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """What does not depend on the model; `units` int64 [n]: what is drawn together when rows are drawn again."""


@dataclass(frozen=True)
class Scored:
    """Rows with what a model said of them.

    Logits and not probabilities: from about 17 on (37 in float64) their sigmoid is 1, so that two rows would tie
    and a confident error would cost as much as the number format allows.
    """

    measured_by: ClassVar[str] = "metrics of scored rows (AUC, LogLoss, NDCG and so on)"
    kind: ClassVar[str] = "Scored"
    drawn: ClassVar[bool] = True
    numbers_queries: ClassVar[bool] = False

    logits: Floats
    """float64 [n]: log of the odds of label 1"""
    labels: Floats
    """float64 [n]: 0 or 1"""
    groups: NDArray[np.int64]
    """int64 [n]: whom the row is ranked for"""
    rows: NDArray[np.int64] | None = None
    """int64 [n]: the row's number in its data set, where it is known"""

    @classmethod
    def of_probabilities(cls, probabilities: Floats, labels: Floats, groups: NDArray[np.int64]) -> "Scored":
        """Of a model that gives float64 [n] probabilities; 0 and 1 are infinite logits."""
        with np.errstate(divide="ignore"):
            return cls(np.log(probabilities) - np.log1p(-probabilities), labels, groups)

    @property
    def predicted(self) -> Floats:
        """What is held against the label: the probabilities."""
        return self.probabilities

    @cached_property
    def probabilities(self) -> Floats:
        """float64 [n]: sigmoid of the logits"""
        small = np.exp(-np.abs(self.logits))  # of the side that cannot overflow
        of_one: Floats = np.where(self.logits >= 0, 1.0, small) / (1.0 + small)
        return of_one

    def stored(self) -> dict[str, NDArray[Any]]:
        """As `RowByRow`."""
        return _stored(self.rows, self.logits, self.labels, self.groups)

    def identity(self, units: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """Every row, its label and group."""
        return _identity(self.rows, self.labels, units)


@dataclass(frozen=True)
class Retrieved(Scored):
    """What was found first of a whole catalogue, as rows of groups: each query's first places, and what it missed.

    A row of place p (from 0) has the logit -p, so that metrics of the first places rank them as they were found; a
    positive that was not found stands behind them all. Scores and what lies further back are not kept.
    """

    measured_by: ClassVar[str] = "metrics of the first places (NDCG, RecallAt, MRR, HitRate and so on)"
    kind: ClassVar[str] = "Retrieved"
    drawn: ClassVar[bool] = False
    numbers_queries: ClassVar[bool] = True

    items: NDArray[np.int64] | None = None
    """int64 [n]: what was found, or missed, where it is known"""
    often: Floats | None = None
    """float64 [n]: how often the item was had in training; this and the next ones where the data were asked"""
    popularity: Floats | None = None
    """float64 [n]: the item's share of training's interactions, each item counted once more than it was had"""
    had: Floats | None = None
    """float64 [n]: mean over what the row's user had in training of log(how often it was had + 1)"""
    expected: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]] | None = None
    """Groups [m] and items [m] -> int64 [m]: at which place, from 0, an item would be, the most popular ones first"""
    alike: Callable[[NDArray[np.int64], NDArray[np.int64]], Floats] | None = None
    """Items [m] and others [m] -> float64 [m]: how alike they are, 0 to 1"""
    catalogue: int = 0
    """Items of the catalogue."""

    def stored(self) -> dict[str, NDArray[Any]]:
        """As `RowByRow`."""
        stored = super().stored()
        return stored if self.items is None else stored | {"item": self.items}

    def identity(self, units: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """What was to be found."""
        if self.items is None or self.rows is None:
            return super().identity(units)
        wanted = self.labels == 1
        return self.rows[wanted], self.items[wanted]


@dataclass(frozen=True)
class Valued:
    """Rows of which a model predicts a number, not whether something holds."""

    measured_by: ClassVar[str] = "RMSE, MSE and MAE where the label is a number"
    kind: ClassVar[str] = "Valued"
    drawn: ClassVar[bool] = False
    numbers_queries: ClassVar[bool] = False

    predicted: Floats
    """float64 [n]: in the units of the label"""
    labels: Floats
    """float64 [n]: any finite number"""
    groups: NDArray[np.int64] | None = None
    """int64 [n]: whose row it is, where it is known"""
    rows: NDArray[np.int64] | None = None
    """int64 [n]: as of `Scored`"""

    def stored(self) -> dict[str, NDArray[Any]]:
        """As `RowByRow`."""
        return _stored(self.rows, self.predicted, self.labels, self.groups)

    def identity(self, units: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """Every row, its label and group."""
        return _identity(self.rows, self.labels, units)


def some_of(of: Any, kept: NDArray[np.bool_], **given: NDArray[Any]) -> Any:
    """Some of the rows of a `Scored` or of its like, bool [n]; `given`: fields of other values, [kept]."""
    arrays = {f.name: values for f in fields(of) if isinstance(values := getattr(of, f.name), np.ndarray)}
    return replace(of, **{name: values[kept] for name, values in arrays.items()} | given)


def _stored(
    rows: NDArray[np.int64] | None, output: Floats, labels: Floats, groups: NDArray[np.int64] | None
) -> dict[str, NDArray[Any]]:
    assert rows is not None and groups is not None
    return {"row": rows, "output": output, "label": labels, "group": groups, "item": np.zeros_like(rows)}


def _identity(rows: NDArray[np.int64] | None, labels: Floats, units: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
    assert rows is not None
    # Groups are numbered by their first row: a number may be an id in one run and a hash in the other.
    _, first, group = np.unique(units, return_index=True, return_inverse=True)
    return rows, labels, first[group]


@dataclass(frozen=True)
class Partial:
    """What one metric keeps of some rows; `a + b` is what it keeps of both."""

    sums: dict[str, Floats] = field(default_factory=dict)
    """Added element by element."""
    rows: dict[str, NDArray[np.float64 | np.int64]] = field(default_factory=dict)
    """Put one after the other, for metrics that need every row."""

    def __add__(self, other: "Partial") -> "Partial":
        if self.sums.keys() != other.sums.keys() or self.rows.keys() != other.rows.keys():
            raise ValueError("states of two different metrics cannot be added")
        return Partial(
            sums={k: v + other.sums[k] for k, v in self.sums.items()},
            rows={k: np.concatenate([v, other.rows[k]]) for k, v in self.rows.items()},
        )


@runtime_checkable
class Metric(Protocol):
    """One number about scored rows; a user's own file may hold one."""

    by_group: ClassVar[bool] = False
    """Whether it is of the order of rows within each group."""
    monitored: ClassVar[bool] = True
    """Whether the best checkpoint may be chosen by it: it is best at one end, not somewhere between."""

    @property
    def name(self) -> str:
        """Key in results, such as `ndcg@10`."""

    @property
    def higher_is_better(self) -> bool:
        """Which way is up."""

    def partial(self, scored: Any) -> Partial:
        """The state of these rows: of a `Scored`, or of what another kind of model gives."""

    def value(self, partial: Partial) -> float:
        """The metric of all rows that the state stands for; nan where it is not defined."""


@runtime_checkable
class Weighable(Protocol):
    """A metric that can be had again, at little cost, of rows that count several times or not at all."""

    def weighted(self, scored: Any) -> Callable[[Floats], float]:
        """How often each row counts, float64 [n] -> the metric then; rows of a group count alike."""


def takes(metric: Metric, kind: type) -> bool:
    """Whether the metric measures what a model of that kind gives: by the annotation of what its `partial` takes.

    Raises:
        ConfigError: it has none.
    """
    partial = type(metric).partial
    hints = get_type_hints(partial)
    taken = [hints[name] for name in list(signature(partial).parameters)[1:2] if name in hints]
    if not taken:
        raise ConfigError(
            f"metrics: {type(metric).__name__}.partial does not say what it measures. Annotate its argument, such as "
            "partial(self, scored: Scored)"
        )
    return kind in (get_args(taken[0]) or (taken[0],))


def group_columns(metric: Metric) -> tuple[str, ...]:
    """The columns whose values make the metric's groups; none: those of `schema.group`, or none at all."""
    by: tuple[str, ...] = getattr(metric, "by", ())
    return by


def sampled_of(metrics: Iterable[Metric]) -> int:
    """Candidates that are drawn for each user of a retrieval model; 0: every item is one.

    Raises:
        ConfigError: the metrics want different ones.
    """
    names = {getattr(metric, "sampled", 0): metric.name for metric in metrics}
    if len(names) > 1:
        raise ConfigError(
            f"metrics: {' and '.join(names.values())} are not of the same candidates. Give all of them the same "
            "`sampled`, and measure the rest in a run of its own"
        )
    return next(iter(names), 0)


def evaluate(metrics: Sequence[Metric], partials: Sequence[Partial]) -> dict[str, float]:
    """Name -> value, for states in the order of the metrics."""
    return {m.name: m.value(p) for m, p in zip(metrics, partials, strict=True)}


def every_row(scored: Scored) -> Partial:
    """The state of a metric that needs all rows at once."""
    return Partial(rows={"logits": scored.logits, "labels": scored.labels, "groups": scored.groups})
