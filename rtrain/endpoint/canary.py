"""How a new version comes to answer all requests, step by step, and what sends it back on the way."""

from dataclasses import dataclass, field

import numpy as np

from rtrain.endpoint.online import Online
from rtrain.endpoint.tally import Tally, alike, apart, bounds, share_bounds
from rtrain.errors import ConfigError

FEW_FAILED = 3
"""Fewer failures than these may be the network's."""
QUANTILE = 0.9
"""Of the seconds, at which versions are compared: the 99th needs ten times the answers."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a new version may not do worse than the champion does meanwhile, of other requests; none: not looked at.

    Each is exceeded only when chance does not explain it, though they are looked at twice a second.
    """

    failed: float | None = 0.005
    """Share of answers that fail, beyond the champion's share."""
    slower: float | None = 1.5
    """Times the champion's 90th percentile of seconds."""
    slack_ms: float = 5.0
    """Milliseconds beyond that which nobody minds."""
    drift: float | None = 0.2
    """Largest distance of the distribution functions of both versions' scores (Kolmogorov-Smirnov), 0 to 1."""
    order: float | None = 0.0
    """Of a model that scores rows, or two stages' candidates, least rank correlation of both versions' scores of the
    same ones (Spearman), -1 to 1: at 0 what orders them the other way round goes back."""
    dearer: float | None = 1.0
    """Of a language model, nats that a token of what is asked may cost it more than the champion, by the median of the
    same texts: at 1 each is e times less likely to it."""
    grown_mb: float | None = 500.0
    """What a replica's memory may grow by since its first answers, 10^6 bytes."""
    online: Online | None = None
    """A rate of an event log that it may not lower."""

    def __post_init__(self) -> None:
        for name, least in (("failed", 0), ("slower", 1), ("drift", 0), ("dearer", 0), ("grown_mb", 0)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ConfigError(f"Limits.{name}: must be at least {least}, got {value}")
        if self.order is not None and not -1 <= self.order <= 1:
            raise ConfigError(f"Limits.order: must be within -1 and 1, got {self.order}")
        if not self.slack_ms >= 0:
            raise ConfigError(f"Limits.slack_ms: must be at least 0, got {self.slack_ms}")

    def exceeded(self, new: Tally, champion: Tally) -> str:
        """Why the new version is to be taken back; empty: nothing is seen against it."""
        return (
            self._failing(new, champion)
            or self._slow(new, champion)
            or self._drifted(new, champion)
            or self._reordered(new)
            or self._dearer(new)
            or self._grown(new)
        )

    def _failing(self, new: Tally, champion: Tally) -> str:
        if self.failed is None or new.failed < FEW_FAILED:
            return ""
        allowed = self.failed + (champion.failed / champion.answers if champion.answers else 0.0)
        if share_bounds(new.failed, new.answers)[0] <= allowed:
            return ""
        return (
            f"{new.failed} of its {new.answers} answers failed, {champion.failed} of the champion's {champion.answers}"
        )

    def _slow(self, new: Tally, champion: Tally) -> str:
        if self.slower is None:
            return ""
        least, most = bounds(new.seconds, QUANTILE)[0], bounds(champion.seconds, QUANTILE)[1]
        if not least > self.slower * most + self.slack_ms / 1e3:
            return ""
        mine, theirs = (1e3 * of.quantile(QUANTILE) for of in (new, champion))
        return f"a tenth of its answers took {mine:.0f} ms or more, of the champion's {theirs:.0f} ms"

    def _drifted(self, new: Tally, champion: Tally) -> str:
        if self.drift is None or not new.scores or not champion.scores:
            return ""
        mine, theirs = np.array(new.scores), np.array(champion.scores)
        distance, chance = apart(mine, theirs)
        if not distance - chance > self.drift:
            return ""
        return (
            f"its scores drifted: distribution functions are {distance:.2f} apart (median {np.median(mine):.4g}, the "
            f"champion's {np.median(theirs):.4g}), {self.drift:g} may be"
        )

    def _reordered(self, new: Tally) -> str:
        if self.order is None:
            return ""
        found, most = alike(new.pairs)
        if found is None or not most < self.order:
            return ""
        return (
            f"it orders otherwise: the rank correlation of its scores and the champion's is {found:.2f} of "
            f"{len(new.pairs)} rows that both were asked; {self.order:g} is the least"
        )

    def _dearer(self, new: Tally) -> str:
        if self.dearer is None or not bounds(new.dearer, 0.5)[0] > self.dearer:
            return ""
        return (
            f"a token of what is asked costs it {np.median(new.dearer):.2f} nats more than the champion, by the median "
            f"of {len(new.dearer)} texts; {self.dearer:g} may be"
        )

    def _grown(self, new: Tally) -> str:
        if self.grown_mb is None or not new.grown > 1e6 * self.grown_mb:
            return ""
        return f"a replica's memory grew by {new.grown / 1e6:.0f} MB, {self.grown_mb:g} may be"


@dataclass(frozen=True, kw_only=True)
class Canary:
    """The way of a new version. A step is over when its seconds and its answers are there and no limit is exceeded."""

    steps: tuple[float, ...] = (0.01, 0.1, 0.5, 1.0)
    """Shares of the requests, rising. One that ends below 1 stays there, until a person decides: an A/B test. (1.0,) is
    blue-green: all at once, and the champion, which no one asks meanwhile, is kept until the step is over."""
    seconds: float = 60.0
    """Least length of each step, but for one of all requests that follows another."""
    answers: int = 200
    """Answers of the new version that such a step needs at least."""
    patience_s: float = 3600.0
    """Seconds after which a step without so many ends with the version taken back: nobody has seen it work."""
    shadow: float = 0.0
    """Share of the champion's requests that the new version is asked too, before the first step; its answers are judged
    and thrown away. A step of its own, of as many seconds and answers; 0: none."""
    timeout_s: float = 10.0
    """Seconds after which the champion answers in a new version's place."""
    limits: Limits = field(default_factory=Limits)
    """What sends it back."""

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.steps, self.steps[1:], strict=False))
        if not self.steps or not rising or not 0 < self.steps[0] <= self.steps[-1] <= 1:
            raise ConfigError(f"Canary.steps: shares above 0, rising, of at most 1, got {self.steps}")
        if not 0 <= self.shadow <= 1:
            raise ConfigError(f"Canary.shadow: must be within 0 and 1, got {self.shadow}")
        for name in ("seconds", "answers"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"Canary.{name}: must be at least 0, got {getattr(self, name)}")
        for name in ("patience_s", "timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"Canary.{name}: must be above 0, got {getattr(self, name)}")
        if self.patience_s < self.seconds:
            raise ConfigError(f"Canary.patience_s: {self.patience_s:g}, less than the {self.seconds:g} s of a step")

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each step, that of the shadow being 0."""
        return (0.0, *self.steps) if self.shadow else self.steps

    def over(self, new: Tally, seconds: float) -> bool:
        """Whether a step has gone on for long enough, if no limit is exceeded."""
        return seconds >= self.seconds and new.answers >= self.answers

    def unseen(self, new: Tally, seconds: float) -> str:
        """Why a step that cannot end is given up; empty: it can."""
        if seconds < self.patience_s or new.answers >= self.answers:
            return ""
        return f"{new.answers} answers in {seconds:.0f} s, where {self.answers} are needed to judge it"
