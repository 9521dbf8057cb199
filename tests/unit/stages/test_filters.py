"""Filters keep the order, and leave out what their rule says."""

from typing import Any

import pytest

from rtrain.errors import ConfigError
from rtrain.stages.config import TwoStages
from rtrain.stages.filters import AtMost, Filter, Only, Ranked, Without

RANKED = [
    Ranked(item, 1 - item / 10, known)
    for item, known in enumerate(
        [{"seller": "a"}, {"seller": "b"}, {}, {"seller": "a"}, {"seller": ["a", "b"]}, {"seller": []}, {"seller": "a"}]
    )
]


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (Only(feature="seller", values=("a",)), [0, 3, 4, 6]),
        (Only(feature="seller", values=("b", "c")), [1, 4]),
        (Only(feature="seller", values=()), []),
        (Without(feature="seller", values=("a",)), [1, 2, 5]),
        (Without(feature="seller", values=("b",)), [0, 2, 3, 5, 6]),
        (AtMost(feature="seller", items=1), [0, 1, 2]),
        (AtMost(feature="seller", items=2), [0, 1, 2, 3, 5]),
        (AtMost(feature="seller", items=3), [0, 1, 2, 3, 4, 5]),
    ],
)
def test_what_is_kept(rule: Filter, kept: list[int]) -> None:
    context: dict[str, Any] = {}
    assert [one.item for one in rule.keep(RANKED, context)] == kept
    assert list(rule.keep([], context)) == []


def test_none_of_each_is_refused() -> None:
    with pytest.raises(ConfigError, match="AtMost.items: must be a whole number of at least 1, got 0"):
        AtMost(feature="seller", items=0)


@pytest.mark.parametrize("kind", [Only, Without])
def test_what_would_let_everything_or_nothing_through_is_refused(kind: Any) -> None:
    for values in (True, "yes"):
        with pytest.raises(ConfigError, match=rf"{kind.__name__}.values: a tuple of them, as \({values!r},\), got"):
            kind(feature="sold_out", values=values)
    with pytest.raises(ConfigError, match="feature: the name of one, got ''"):
        kind(feature="", values=(1,))
    with pytest.raises(ConfigError, match=r"TwoStages.filters: a tuple of them, as \(Without"):
        TwoStages(filters=kind(feature="sold_out", values=(True,)))
