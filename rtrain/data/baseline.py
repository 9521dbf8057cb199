"""What data offer to hold a model against."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rtrain.data.split import Split


@dataclass(frozen=True)
class Baseline:
    """A rule, or a small model of another kind, that has learned from the training rows alone."""

    name: str
    """As a person reads it beside its metrics."""
    says: Callable[[Split], Any]
    """What it says of a split's rows, as the metrics take it."""
