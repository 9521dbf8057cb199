"""What a run keeps of its test split: the same from several ranks, samples of whole groups, whose rows are alike."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rtrain.evaluation.rows import Kept, TestRows, is_kept, keep
from rtrain.metrics.language import TokensScored
from rtrain.metrics.state import Retrieved, Scored, Valued

RANDOM = np.random.default_rng(0)
COUNT = 600
ROWS = Scored(
    RANDOM.normal(size=COUNT), (RANDOM.random(COUNT) < 0.4).astype(np.float64), RANDOM.integers(-40, 40, COUNT),
    np.arange(1000, 1000 + COUNT),
)  # fmt: skip


def part(of: Scored, rows: Any) -> Scored:
    assert of.rows is not None
    return Scored(of.logits[rows], of.labels[rows], of.groups[rows], of.rows[rows])


def stored(of: Any, *, share: float = 1.0, grouped: bool = True, kind: str = "Scored") -> TestRows:
    kept = Kept({"": (kind, keep(of, share, grouped=grouped))}, share, grouped)
    return TestRows.read(kept.to_parquet(first=1000))[""]


def test_several_ranks_keep_what_one_keeps() -> None:
    owner = RANDOM.integers(0, 3, COUNT)
    for share in (1.0, 0.3):
        ranks = [keep(part(ROWS, owner == rank), share, grouped=True) for rank in range(3)]
        sum_of = {name: np.concatenate([rank[name] for rank in ranks]) for name in ranks[0]}
        three = TestRows.read(Kept({"": ("Scored", sum_of)}, share, True).to_parquet(first=1000))[""]
        one = stored(ROWS, share=share)
        assert one.same_rows(three)
        np.testing.assert_array_equal(one.scored.labels, three.scored.labels)
        assert isinstance(one.scored, Scored) and isinstance(three.scored, Scored)
        np.testing.assert_array_equal(one.scored.logits, three.scored.logits)


def test_a_sample_is_of_whole_groups() -> None:
    found = stored(ROWS, share=0.4)
    groups, sizes = np.unique(found.units, return_counts=True)
    all_groups, all_sizes = np.unique(ROWS.groups, return_counts=True)
    assert 0.2 * len(all_groups) < len(groups) < 0.6 * len(all_groups)
    assert dict(zip(groups, sizes, strict=True)).items() <= dict(zip(all_groups, all_sizes, strict=True)).items()
    assert found.share == 0.4


def test_rows_are_the_same_whatever_the_model_said_and_whatever_a_group_is_called() -> None:
    assert ROWS.rows is not None
    one = stored(ROWS)
    assert one.scored.rows is not None and one.scored.rows.tolist() == list(range(COUNT))
    assert one.same_rows(stored(replace(ROWS, logits=-ROWS.logits, groups=7 - ROWS.groups)))
    assert not one.same_rows(stored(replace(ROWS, labels=1 - ROWS.labels)))
    assert not one.same_rows(stored(part(ROWS, slice(1, None))))
    assert not one.same_rows(stored(replace(ROWS, groups=ROWS.groups // 2)))
    assert not one.same_rows(stored(ROWS, grouped=False))
    numbers = Valued(ROWS.logits, ROWS.labels, ROWS.groups, ROWS.rows)
    assert not one.same_rows(stored(numbers, kind="Valued"))
    assert stored(numbers, kind="Valued").same_rows(stored(replace(numbers, predicted=ROWS.labels), kind="Valued"))


def test_lists_are_of_the_same_users_where_these_wanted_the_same() -> None:
    users = np.array([1000, 1000, 1000, 1001, 1001])
    one = Retrieved(
        -np.array([0.0, 1, 2, 0, 1]), np.array([0.0, 1, 0, 1, 0]), users, users, np.array([5, 6, 7, 8, 9])
    )  # fmt: skip
    others = replace(one, labels=np.array([1.0, 0, 0, 0, 1]), items=np.array([6, 5, 1, 2, 8]))
    found = stored(one, kind="Retrieved")
    assert found.same_rows(stored(others, kind="Retrieved")) and found.units.tolist() == [0, 0, 0, 1, 1]
    assert not found.same_rows(stored(replace(others, items=np.array([3, 5, 1, 2, 8])), kind="Retrieved"))


def test_another_file_is_refused() -> None:
    with pytest.raises(ValueError, match="Parquet"):
        TestRows.read(b"nothing")


def test_kinds_of_ones_own_are_kept_where_a_file_can_name_them() -> None:
    class Mine(Scored):
        """Of a model of one's own."""

    mine = Mine(ROWS.logits, ROWS.labels, ROWS.groups, ROWS.rows)
    assert is_kept(mine) and is_kept(ROWS) and not is_kept(replace(ROWS, rows=None))
    assert not is_kept(TokensScored(1.0, 2))

    class Other(Scored):
        kind = "Other"

    assert not is_kept(Other(ROWS.logits, ROWS.labels, ROWS.groups, ROWS.rows))
