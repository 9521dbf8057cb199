"""How long something lasts, or how often it comes: in steps, samples, epochs or seconds."""

from dataclasses import dataclass
from typing import Protocol

from rtrain.errors import ConfigError
from rtrain.rounding import ceil_div

CLOCK = "duration.seconds"
"""What the reason begins with of a run that a clock ended."""


class Progress(Protocol):
    """Where training is."""

    step: int
    """Optimizer steps done."""

    @property
    def rows_seen(self) -> int:
        """Samples consumed."""

    @property
    def epoch(self) -> float:
        """Epochs done, with the fraction of the current one."""


@dataclass(frozen=True, kw_only=True)
class Duration:
    """A length of training. Of several units the one that is reached first counts."""

    steps: int | None = None
    """Optimizer steps."""
    samples: int | None = None
    """Rows of the training split, or sequences, that are consumed."""
    epochs: int | None = None
    """Passes over the training split."""
    seconds: float | None = None
    """Seconds of training by rank 0's clock, which the others hear of at the next point of the curve."""

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("steps", "samples", "epochs", "seconds")}
        if all(value is None for value in given.values()):
            raise ConfigError("duration: give at least one of steps, samples, epochs and seconds")
        for name, value in given.items():
            if value is not None and not (value >= 1 if name != "seconds" else value > 0):
                least = "at least 1" if name != "seconds" else "above 0"
                raise ConfigError(f"duration: {name} must be {least}, or none, got {value}")

    def limit(self, rows: int, steps_per_epoch: int) -> int | None:
        """Optimizer steps of the whole, of which `rows` take an epoch; none: a clock alone ends it."""
        ends = [self.steps]
        if self.epochs is not None:
            ends.append(self.epochs * steps_per_epoch)
        if self.samples is not None:
            whole, left = divmod(self.samples, rows)
            ends.append(whole * steps_per_epoch + ceil_div(left * steps_per_epoch, rows))
        return min((end for end in ends if end is not None), default=None)

    def due(self, before: Progress, now: Progress) -> bool:
        """Whether a multiple of steps, samples or epochs was reached in between; seconds are for who has a clock."""
        units = ((self.steps, before.step, now.step), (self.samples, before.rows_seen, now.rows_seen))
        epochs = (self.epochs, int(before.epoch), int(now.epoch))
        return any(every is not None and now // every > then // every for every, then, now in (*units, epochs))
