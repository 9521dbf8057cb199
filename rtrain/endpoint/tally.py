"""What is known of a version's answers: counts, and samples of how long they took and what they said."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLE = 4096
"""Newest seconds and scores that are kept of a version: enough to see a shift of a twentieth."""
Z = 4.0
"""Standard deviations that count as chance: versions are compared twice a second, so one look in 30,000 may err."""
MOST_NATS = 1000.0
FEW = 30
"""Seconds in a sample from which on its quantiles have bounds."""
WARM = 20
"""Answers of a replica after which its memory counts as what it begins with."""


@dataclass
class Tally:
    """Of some answers of one version; several are added up."""

    answers: int = 0
    failed: int = 0
    """Of them those without an answer, with one of 500 and above, or with a refusal of what the champion answers."""
    refused: int = 0
    """Of them those that the client was told to mend, 400 to 499."""
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLE))
    scores: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLE))
    dearer: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLE))
    """Of texts that were asked, nats a token that each costs this version more than the champion."""
    pairs: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=SAMPLE))
    """Of some rows, this version's score and the champion's."""
    memory: dict[str, "Held"] = field(default_factory=dict)
    """Of each replica."""

    def count(self, status: int, seconds: float) -> None:
        """One more answer; `status` of HTTP, 504 where none came."""
        self.answers += 1
        self.failed += status >= 500
        self.refused += 400 <= status < 500
        self.seconds.append(seconds)

    def refuses_alone(self) -> None:
        """The champion answers what the last refusal was of: it is no fault of the client's."""
        self.failed += 1
        self.refused -= 1

    def said(self, scores: Iterable[float]) -> None:
        """What some of the answers said."""
        self.scores.extend(scores)

    def costs(self, more: float) -> None:
        """What a text costs it more; what is no number is as bad as may be."""
        self.dearer.append(min(more, MOST_NATS) if isfinite(more) else MOST_NATS)

    def scores_both(self, pairs: Iterable[tuple[float, float]]) -> None:
        """What this version and the champion say of the same rows."""
        self.pairs.extend(pair for pair in pairs if isfinite(pair[0]) and isfinite(pair[1]))

    def holds(self, replica: str, memory: int) -> None:
        """Bytes that a replica held as it answered."""
        self.memory.setdefault(replica, Held()).see(memory)

    def add(self, other: "Tally") -> None:
        """All that another one knows, newer than what is known here."""
        self.answers += other.answers
        self.failed += other.failed
        self.refused += other.refused
        self.seconds.extend(other.seconds)
        self.scores.extend(other.scores)
        self.dearer.extend(other.dearer)
        self.pairs.extend(other.pairs)
        for replica, held in other.memory.items():
            self.memory.setdefault(replica, Held()).add(held)

    @property
    def grown(self) -> int:
        """Bytes by which the replica that grew most has, since it was warm."""
        return max((held.last - held.first for held in self.memory.values()), default=0)

    def quantile(self, q: float) -> float:
        """Of the seconds; nan without any."""
        return float(np.quantile(np.array(self.seconds), q)) if self.seconds else float("nan")

    def to_json(self) -> dict[str, Any]:
        """What a person wants to see."""
        return {
            "answers": self.answers,
            "failed": self.failed,
            "refused": self.refused,
            "p50_ms": 1e3 * self.quantile(0.5) if self.seconds else None,
            "p99_ms": 1e3 * self.quantile(0.99) if self.seconds else None,
            "mean_score": float(np.mean(self.scores)) if self.scores else None,
            "nats_more": float(np.median(self.dearer)) if self.dearer else None,
            "order": alike(self.pairs)[0] if len(self.pairs) >= FEW else None,
            "grown_mb": self.grown / 1e6,
            "replicas": sorted(self.memory),
        }


@dataclass
class Held:
    """Bytes of one process: when it was warm, or soon after where parts are added up, and now."""

    seen: int = 0
    first: int = 0
    last: int = 0

    def see(self, memory: int) -> None:
        """It answered once more."""
        self.seen += 1
        self.last = memory
        if self.seen <= WARM:
            self.first = memory

    def add(self, newer: "Held") -> None:
        """What was seen since."""
        self.first = self.first if self.seen >= WARM else newer.first
        self.seen += newer.seen
        self.last = newer.last


def bounds(sample: Iterable[float], q: float) -> tuple[float, float]:
    """Between which, but for chance, the `q` quantile of what a sample is drawn from lies, of whatever form it is.

    From the order statistics: how many of n lie below the quantile is binomial. -inf and inf where n is too small.
    """
    ordered = np.sort(np.fromiter(sample, float))
    n = len(ordered)
    if n < FEW:
        return -np.inf, np.inf
    spread = Z * np.sqrt(n * q * (1 - q))
    low, high = int(np.floor(n * q - spread)), int(np.ceil(n * q + spread))
    return float(ordered[low]) if low >= 0 else -np.inf, float(ordered[high]) if high < n else np.inf


def share_bounds(count: int, of: int) -> tuple[float, float]:
    """Between which, but for chance, a share lies that was seen as `count` of `of` (Wilson, 1927); 0 and 1 of none."""
    if not of:
        return 0.0, 1.0
    z2, seen = Z**2, count / of
    middle, half = seen + z2 / (2 * of), Z * np.sqrt(seen * (1 - seen) / of + z2 / (4 * of * of))
    return float((middle - half) / (1 + z2 / of)), float((middle + half) / (1 + z2 / of))


def alike(pairs: Iterable[tuple[float, float]]) -> tuple[float | None, float]:
    """Rank correlation of two scores (Spearman), and what it is at most but for chance (Fieller, Hartley and Pearson,
    1957); none and 1 where it has none: of too few, or where either is always the same."""
    both = np.array(list(pairs), np.float64).reshape(-1, 2)
    ranks = np.stack([_ranks(both[:, 0]), _ranks(both[:, 1])])
    if len(both) < FEW or not ranks.std(1).all():
        return None, 1.0
    found = float(np.asarray(np.corrcoef(ranks))[0, 1])
    z = np.arctanh(np.clip(found, -1 + 1e-9, 1 - 1e-9)) + Z * np.sqrt(1.06 / (len(both) - 3))
    return found, float(np.tanh(z))


def _ranks(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of equal ones their mean."""
    _, which, counts = np.unique(x, return_inverse=True, return_counts=True)
    middles: NDArray[np.float64] = np.cumsum(counts).astype(np.float64) - (counts - 1) / 2
    return middles[which]


def apart(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Largest distance of two samples' distribution functions (Kolmogorov-Smirnov), and what chance may make of it.

    The second is what samples of these sizes of one and the same distribution exceed once in 100,000 looks.
    """
    a, b = np.sort(a), np.sort(b)
    at = np.concatenate([a, b])
    distance = np.abs(np.searchsorted(a, at, "right") / len(a) - np.searchsorted(b, at, "right") / len(b)).max()
    return float(distance), float(2.47 * np.sqrt((len(a) + len(b)) / (len(a) * len(b))))
