"""How many requests will be under way soon, by what there were: Ray Serve's autoscaling, a while ahead.

Imports nothing of rtrain: Serve's controller gets this file by value.
"""

import math
from collections import deque
from itertools import islice
from typing import Any

LEVEL, TREND, DAMPED = 0.5, 0.2, 0.95
"""How much the newest sample counts in the level and in its trend, and what is left of the trend a sample later: of a
rise that went on for a minute nobody knows that it will go on for an hour."""
ALIKE = 5
"""Samples by which today is compared with the season before."""
MOST = 2.0
"""Today is at most so many times the season before, and at least its inverse."""


class Forecast:
    """Of a series with one value every so often: its trend (Holt, 1957, damped after Gardner and McKenzie, 1985), and
    where there is a season, what followed the same moment a season ago, times how today compares with it."""

    def __init__(self, season: int = 0):
        """`season`: values after which the series begins anew, as of a day; 0: it has none."""
        self._season = season
        self._past: deque[float] = deque(maxlen=season + ALIKE)
        self._level, self._slope, self._seen = 0.0, 0.0, 0

    def see(self, value: float) -> None:
        """The next value."""
        self._seen += 1
        self._past.append(value)
        if self._seen == 1:
            self._level = value
            return
        before = self._level
        self._level = LEVEL * value + (1 - LEVEL) * (before + DAMPED * self._slope)
        self._slope = TREND * (self._level - before) + (1 - TREND) * DAMPED * self._slope

    def ahead(self, steps: int) -> float:
        """The largest value up to so many later, as far as trend and season tell; 0 before there is any."""
        rise = sum(DAMPED**step for step in range(1, steps + 1))
        trend = max(self._level, self._level + rise * self._slope)
        return max(0.0, trend, *(self._of_season(step) for step in range(1, steps + 1)))

    def _of_season(self, steps: int) -> float:
        if not self._season or len(self._past) < self._season + ALIKE or steps > self._season:
            return 0.0
        now = sum(islice(self._past, self._season, None)) / ALIKE
        then = sum(islice(self._past, 0, ALIKE)) / ALIKE
        compared = min(MOST, max(1 / MOST, now / then)) if then > 0 else 1.0
        return compared * self._past[ALIKE - 1 + steps]


class Foreseeing:
    """A policy of Ray Serve: as many replicas as the requests under way need, now or soon.

    Serve calls it several times a second; it takes one value every `every_s`. Serve's own delays and bounds hold.
    """

    def __init__(self, ahead_s: float, season_s: float, every_s: float):
        self._every_s, self._steps = every_s, max(1, math.ceil(ahead_s / every_s))
        self._forecast = Forecast(round(season_s / every_s))
        self._next: float | None = None

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """Replicas that are wanted."""
        requests, now = float(ctx.total_num_requests), float(ctx.current_time)
        if self._next is None or now >= self._next:
            self._forecast.see(requests)
            # After a pause the values are as far apart as before, not crowded to catch up.
            self._next = max(now, (self._next or now) + self._every_s) if self._next else now + self._every_s
        most = max(requests, self._forecast.ahead(self._steps))
        return math.ceil(most / ctx.config.target_ongoing_requests), {}
