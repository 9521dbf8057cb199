"""How long each stretch of a run took, on its driver's clock."""

import time

WORKERS = "workers"
"""The stretch in which the run had workers."""


class Clock:
    """Runs from its making on; each lap ends where the next begins, so that no second is left out."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        """Seconds by stretch, in order."""
        self._began = self._lap_began = time.perf_counter()

    def lap(self, name: str) -> None:
        """What went on since the last lap was `name`."""
        now = time.perf_counter()
        self.laps[name] = now - self._lap_began
        self._lap_began = now

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._began
