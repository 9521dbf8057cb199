"""What accuracy does not see of a retrieval model's lists: how much of the catalogue, how popular, alike, surprising.

All are of the first k places of every user, over all users together, so that ranks just add what they have.
Legend: p(i), the share of training's interactions that were of item i, each item counted once more than it was had so
that none has 0.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from rtrain.errors import ConfigError
from rtrain.metrics.state import Floats, Metric, Partial, Retrieved

NOT_TOLD = "set where the rows were told what the data know of items"


@dataclass(frozen=True, kw_only=True)
class _Lists(Metric):
    """A metric of what is in the first k places."""

    by_group: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = True
    short: ClassVar[str]
    k: int = 10
    """Places that count."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"{type(self).__name__}.k: must be at least 1, got {self.k}")

    @property
    def name(self) -> str:
        """Such as `coverage@10`."""
        return f"{self.short}@{self.k}"

    def shown(self, scored: Retrieved) -> NDArray[np.bool_]:
        """[n]: the rows in the first k places; what was missed lies behind the last place that is looked at."""
        return scored.logits > -self.k


@dataclass(frozen=True, kw_only=True)
class Coverage(_Lists):
    """Items in anybody's first k places / items of the catalogue (Ge et al., "Beyond accuracy", RecSys 2010)."""

    short: ClassVar[str] = "coverage"

    def partial(self, scored: Retrieved) -> Partial:
        """The items, each once, and the size of the catalogue."""
        assert scored.items is not None
        items = np.unique(scored.items[self.shown(scored)])
        return Partial(rows={"items": items, "catalogue": np.array([scored.catalogue])})

    def value(self, partial: Partial) -> float:
        """The share; nan of no catalogue."""
        size = partial.rows["catalogue"].max(initial=0)
        return float(len(np.unique(partial.rows["items"])) / size) if size else float("nan")


@dataclass(frozen=True, kw_only=True)
class Novelty(_Lists):
    """Mean of -log2 p(i) over all places, in bits (Zhou et al., PNAS 107(10), 2010): higher is less popular."""

    short: ClassVar[str] = "novelty"

    def partial(self, scored: Retrieved) -> Partial:
        """Sum and count."""
        bits = -np.log2(_of(scored.popularity)[self.shown(scored)])
        return _sums(bits=bits.sum(), places=len(bits))

    def value(self, partial: Partial) -> float:
        """The mean."""
        return _ratio(partial, "bits", "places")


@dataclass(frozen=True, kw_only=True)
class PopularityBias(_Lists):
    """How much more popular what is found is than what users had: 1 is alike, above 1 it is more popular.

    Mean over places of log(how often the item was had in training + 1), over the mean of what each user had (after the
    group average popularity of Abdollahpouri et al., "The unfairness of popularity bias in recommendation", RMSE 2019;
    in logarithms, so that a few items do not make the mean).
    """

    monitored: ClassVar[bool] = False  # best near 1, not at an end
    short: ClassVar[str] = "popularity_bias"

    def partial(self, scored: Retrieved) -> Partial:
        """Sums and counts of places, and of users."""
        found = np.log1p(_of(scored.often)[self.shown(scored)])
        _, first = np.unique(scored.groups, return_index=True)
        had = _of(scored.had)[first]
        return _sums(found=found.sum(), places=len(found), had=had.sum(), users=len(had))

    def value(self, partial: Partial) -> float:
        """The ratio of the means."""
        return _ratio(partial, "found", "places") / (_ratio(partial, "had", "users") or float("nan"))


@dataclass(frozen=True, kw_only=True)
class Diversity(_Lists):
    """How unlike the items of a list are: 1 less the mean likeness of its pairs, mean over users (Ziegler et al.,
    "Improving recommendation lists through topic diversification", WWW 2005).

    Two items are alike by who had both in training (`rtrain.data.alike`). Lists of one item are left out.
    """

    short: ClassVar[str] = "diversity"

    def partial(self, scored: Retrieved) -> Partial:
        """Sum over users, and their number."""
        assert scored.items is not None and scored.alike is not None, NOT_TOLD
        shown = self.shown(scored)
        users, user = np.unique(scored.groups[shown], return_inverse=True)
        lists = np.full((len(users), self.k), -1)
        lists[user, -scored.logits[shown].astype(np.int64)] = scored.items[shown]
        first, second = np.triu_indices(self.k, 1)
        left, right = lists[:, first], lists[:, second]
        there = (left >= 0) & (right >= 0)
        span = int(lists.max(initial=0)) + 1
        low, high = np.minimum(left, right)[there], np.maximum(left, right)[there]
        pairs, pair = np.unique(low * span + high, return_inverse=True)  # lists have most of their pairs in common
        unlike = np.zeros(there.shape)
        unlike[there] = 1.0 - scored.alike(pairs // span, pairs % span)[pair]
        counts = there.sum(1)
        means = unlike.sum(1)[counts > 0] / counts[counts > 0]
        return _sums(unlike=means.sum(), users=len(means))

    def value(self, partial: Partial) -> float:
        """The mean; nan without a list of two."""
        return _ratio(partial, "unlike", "users")


@dataclass(frozen=True, kw_only=True)
class Serendipity(_Lists):
    """Share of the first k places that hold what the user wanted and what popularity alone would not have placed there
    (Ge et al., "Beyond accuracy", RecSys 2010, with the most popular items as the primitive method), mean over users.
    """

    short: ClassVar[str] = "serendipity"

    def partial(self, scored: Retrieved) -> Partial:
        """Count of such places, and of all."""
        assert scored.items is not None and scored.expected is not None, NOT_TOLD
        hits = self.shown(scored) & (scored.labels == 1)
        surprising = scored.expected(scored.groups[hits], scored.items[hits]) >= self.k
        return _sums(hits=surprising.sum(), places=self.k * len(np.unique(scored.groups)))

    def value(self, partial: Partial) -> float:
        """The share; nan without a user."""
        return _ratio(partial, "hits", "places")


def _of(facts: NDArray[np.float64] | None) -> Floats:
    assert facts is not None, NOT_TOLD
    return facts


def _sums(**values: float) -> Partial:
    return Partial(sums={k: np.array(v, dtype=np.float64) for k, v in values.items()})


def _ratio(partial: Partial, above: str, below: str) -> float:
    total = float(partial.sums[below])
    return float(partial.sums[above]) / total if total else float("nan")
