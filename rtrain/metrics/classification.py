"""Metrics of probabilities against 0/1 labels, or of numbers, that a few sums give. All sums are float64."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from rtrain.errors import ConfigError
from rtrain.metrics.state import Floats, Metric, Partial, Scored, Valued

Addends = Mapping[str, NDArray[np.float64 | np.bool_]]
"""Name of a sum -> what each row adds to it, [n]."""


class _OfSums(Metric):
    """A metric that a few sums over the rows give."""

    @abstractmethod
    def each(self, scored: Scored) -> Addends:
        """What each row adds to each sum."""

    def partial(self, scored: Scored) -> Partial:
        """The sums."""
        return Partial(sums={k: np.array(v.sum(), dtype=np.float64) for k, v in self.each(scored).items()})

    def weighted(self, scored: Scored) -> Callable[[Floats], float]:
        """As `rtrain.metrics.state.Weighable`."""
        each = {k: v.astype(np.float64) for k, v in self.each(scored).items()}
        return lambda counts: self.value(Partial(sums={k: np.array(v @ counts) for k, v in each.items()}))


@dataclass(frozen=True, kw_only=True)
class LogLoss(_OfSums):
    """Mean negative log-likelihood in nats; not clipped, so a confident error costs what it should."""

    name: ClassVar[str] = "log_loss"
    higher_is_better: ClassVar[bool] = False

    def each(self, scored: Scored) -> Addends:
        """Its loss."""
        against = np.where(scored.labels == 1, -scored.logits, scored.logits)
        return {"loss": np.logaddexp(0.0, against), "rows": np.ones(len(against))}

    def value(self, partial: Partial) -> float:
        """The mean."""
        return _ratio(partial, "loss", "rows")


@dataclass(frozen=True, kw_only=True)
class Calibration(_OfSums):
    """Predicted over observed positives; 1 is calibrated, above 1 promises too much."""

    monitored: ClassVar[bool] = False  # best at 1, not at its largest
    name: ClassVar[str] = "calibration"
    higher_is_better: ClassVar[bool] = True

    def each(self, scored: Scored) -> Addends:
        """Prediction and label."""
        return {"predicted": scored.probabilities, "observed": scored.labels}

    def value(self, partial: Partial) -> float:
        """The ratio."""
        return _ratio(partial, "predicted", "observed")


@dataclass(frozen=True, kw_only=True)
class NormalizedEntropy(_OfSums):
    """Log loss over that of always saying the mean label; below 1 something was learnt.

    He et al., "Practical lessons from predicting clicks on ads at Facebook", ADKDD 2014.
    """

    name: ClassVar[str] = "normalized_entropy"
    higher_is_better: ClassVar[bool] = False

    def each(self, scored: Scored) -> Addends:
        """Loss and label."""
        return {**LogLoss().each(scored), "positives": scored.labels}

    def value(self, partial: Partial) -> float:
        """The ratio; nan with one class only."""
        rows, positives = float(partial.sums["rows"]), float(partial.sums["positives"])
        if not 0 < positives < rows:
            return float("nan")
        p = positives / rows
        return float(partial.sums["loss"] / rows / -(p * np.log(p) + (1 - p) * np.log1p(-p)))


@dataclass(frozen=True, kw_only=True)
class MSE(_OfSums):
    """Mean squared difference of probability and label (Brier, 1950), or of predicted number and label."""

    name: ClassVar[str] = "mse"
    higher_is_better: ClassVar[bool] = False

    def each(self, scored: Scored | Valued) -> Addends:
        """Its error."""
        return {"error": (scored.predicted - scored.labels) ** 2, "rows": np.ones(len(scored.labels))}

    def partial(self, scored: Scored | Valued) -> Partial:
        """The sums."""
        return super().partial(scored)  # type: ignore[arg-type]  # which only hands it on to `each`

    def value(self, partial: Partial) -> float:
        """The mean."""
        return _ratio(partial, "error", "rows")


@dataclass(frozen=True, kw_only=True)
class RMSE(MSE):
    """Root of the mean squared difference."""

    name: ClassVar[str] = "rmse"

    def value(self, partial: Partial) -> float:
        """The root."""
        return float(np.sqrt(_ratio(partial, "error", "rows")))


@dataclass(frozen=True, kw_only=True)
class MAE(_OfSums):
    """Mean absolute difference of probability, or predicted number, and label."""

    name: ClassVar[str] = "mae"
    higher_is_better: ClassVar[bool] = False

    def each(self, scored: Scored | Valued) -> Addends:
        """Its error."""
        return {"error": np.abs(scored.predicted - scored.labels), "rows": np.ones(len(scored.labels))}

    def partial(self, scored: Scored | Valued) -> Partial:
        """The sums."""
        return super().partial(scored)  # type: ignore[arg-type]  # which only hands it on to `each`

    def value(self, partial: Partial) -> float:
        """The mean."""
        return _ratio(partial, "error", "rows")


@dataclass(frozen=True, kw_only=True)
class _Threshold(_OfSums):
    """What follows from calling probabilities of at least `threshold` 1."""

    higher_is_better: ClassVar[bool] = True
    short: ClassVar[str]
    threshold: float = 0.5
    """Probabilities of at least this count as 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"{type(self).__name__}.threshold: must be in 0..1, got {self.threshold}")

    @property
    def name(self) -> str:
        """Such as `recall`; `recall>=0.3` where the threshold is not one half."""
        return self.short if self.threshold == 0.5 else f"{self.short}>={self.threshold:g}"

    def each(self, scored: Scored) -> Addends:
        """What it is called and what it is."""
        called, is_one = scored.probabilities >= self.threshold, scored.labels == 1
        right, rows = called == is_one, np.ones(len(called))
        return {"right_ones": called & is_one, "called": called, "ones": is_one, "right": right, "rows": rows}


@dataclass(frozen=True, kw_only=True)
class Accuracy(_Threshold):
    """Share of rows on the right side of the threshold."""

    short: ClassVar[str] = "accuracy"

    def value(self, partial: Partial) -> float:
        """The share."""
        return _ratio(partial, "right", "rows")


@dataclass(frozen=True, kw_only=True)
class Precision(_Threshold):
    """Of the rows that are called 1, the share that is; nan when none is called so."""

    short: ClassVar[str] = "precision"

    def value(self, partial: Partial) -> float:
        """The share."""
        return _ratio(partial, "right_ones", "called")


@dataclass(frozen=True, kw_only=True)
class Recall(_Threshold):
    """Of the rows that are 1, the share that is called so; nan when none is."""

    short: ClassVar[str] = "recall"

    def value(self, partial: Partial) -> float:
        """The share."""
        return _ratio(partial, "right_ones", "ones")


@dataclass(frozen=True, kw_only=True)
class F1(_Threshold):
    """Harmonic mean of precision and recall; nan when no row is 1 and none is called so."""

    short: ClassVar[str] = "f1"

    def value(self, partial: Partial) -> float:
        """The mean."""
        both = float(partial.sums["called"] + partial.sums["ones"])
        return 2 * float(partial.sums["right_ones"]) / both if both else float("nan")


def _ratio(partial: Partial, above: str, below: str) -> float:
    total: Floats = partial.sums[below]
    return float(partial.sums[above] / total) if total else float("nan")
