"""Several losses of the same vectors at once."""

from dataclasses import dataclass, field
from math import isfinite

from torch import Tensor

from rtrain.errors import ConfigError
from rtrain.objectives.candidate_loss import CandidateLoss
from rtrain.objectives.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class WeightedSum(CandidateLoss):
    """The sum of several losses of the same queries and candidates, each times its weight.

    The losses agree in `cosine`, by which the catalogue is ranked; each has its own temperature.
    """

    of: tuple[CandidateLoss, ...]
    """The losses."""
    weights: tuple[float, ...] = ()
    """Factor on each; empty: 1 on all."""
    cosine: bool = field(init=False)
    """The losses'."""
    temperature: float = field(init=False, default=1.0)
    """Each loss has its own."""

    def __post_init__(self) -> None:
        if not self.of:
            raise ConfigError("model.objective.of: a sum of no loss. Give of=(BPR(), InBatchSoftmax())")
        if self.weights and len(self.weights) != len(self.of):
            raise ConfigError(
                f"model.objective.weights: {len(self.weights)} weights for {len(self.of)} losses. "
                "Give one for each, or none"
            )
        for weight in self.weights:
            if not (isfinite(weight) and weight >= 0):
                raise ConfigError(f"model.objective.weights: each must be finite and at least 0, got {weight}")
        if len({loss.cosine for loss in self.of}) > 1:
            raise ConfigError(
                "model.objective.of: some losses have cosine and some not, but a catalogue is ranked by one product. "
                "Set it in all or in none"
            )
        object.__setattr__(self, "cosine", self.of[0].cosine)
        super().__post_init__()

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """Whether one does."""
        return any(loss.draws for loss in self.of)

    @property
    def whole_batch(self) -> bool:  # type: ignore[override]
        """Whether one does."""
        return any(loss.whole_batch for loss in self.of)

    @property
    def whole_catalogue(self) -> bool:  # type: ignore[override]
        """Whether one does."""
        return any(loss.whole_catalogue for loss in self.of)

    @property
    def powers(self) -> frozenset[float]:
        """The losses'."""
        return frozenset().union(*(loss.powers for loss in self.of))

    def compare(self, queries: Tensor, candidates: Tensor, target: Tensor, ranks: Ranks) -> Tensor:
        """As `CandidateLoss`."""
        weights = self.weights or (1.0,) * len(self.of)
        parts = [
            weight * loss.compare(queries, candidates, target, ranks)
            for weight, loss in zip(weights, self.of, strict=True)
        ]
        return sum(parts[1:], start=parts[0])
