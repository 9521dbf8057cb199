"""Metrics of every row, of rows that are dealt out: each part is measured by itself and comes to a few sums."""

from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from rtrain.metrics.state import Metric, Partial

Dealing = Literal["groups", "scores"]
"""What keeps rows together: a part has whole groups, or all rows of a range of scores, the highest in the first."""


@runtime_checkable
class InParts(Protocol):
    """A metric whose rows need not be in one place; its state by `partial` is of the rows themselves.

    Whoever defines `partial` or `value` anew says `dealt_by` anew: else the rows are gathered, for what these make of
    them is not known.
    """

    dealt_by: ClassVar[Dealing]

    def of_part(self, part: Any) -> Partial:
        """The state of a part, a `GroupPart` or a `ScorePart`: small, and added to those of the other parts."""

    def of_parts(self, partial: Partial) -> float:
        """The metric, of the states of all parts together."""


def as_parted(metric: Metric) -> InParts | None:
    """The metric where its rows may be dealt out; none where they are to be gathered."""
    if not isinstance(metric, InParts):
        return None
    dealt, *others = (_owner(type(metric), name) for name in ("dealt_by", "partial", "value"))
    return metric if all(issubclass(dealt, other) for other in others) else None


def _owner(kind: type, name: str) -> type:
    """The class in whose body the name is."""
    return next(cls for cls in kind.__mro__ if name in vars(cls))
