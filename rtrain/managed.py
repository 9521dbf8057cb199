"""Rows of a table that are given to values, and taken again, while a model trains."""

from dataclasses import dataclass

from rtrain.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Managed:
    """Raw 64-bit ids, or words, without collisions: the values that count most have a row each, all others row 0.

    After every `every` steps the values are ranked anew by a score: of a value with a row `decay` times the one before
    and how often it was seen in the steps since, over all ranks; of one without, how often it was seen since: nothing
    is remembered of it. One that was seen `least` times takes a row that nobody has yet, and then that of a value whose
    score is lower: that row begins again, from a first vector and with no state of the optimizer. Which value has which
    row depends on the global batches alone, so that it is the same at every layout and after every resume. It is part
    of a checkpoint, and of the export, which answers from it.
    """

    every: int = 1000
    """Steps between two rankings."""
    decay: float = 0.9
    """What the score of a value with a row keeps from one ranking to the next. 1: it stays until another is seen more
    often within `every` steps than it ever was; towards 0: the values seen last stay (LRU)."""
    least: int = 1
    """Times that a value must be seen between two rankings before it is given a row."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"managed.every: must be at least 1, got {self.every}")
        if not 0 <= self.decay <= 1:
            raise ConfigError(f"managed.decay: must be from 0 to 1, got {self.decay}")
        if self.least < 1:
            raise ConfigError(f"managed.least: must be at least 1, got {self.least}")
