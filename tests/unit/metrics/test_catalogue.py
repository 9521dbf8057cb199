"""Full-catalogue ranking against numpy's stable sort of all scores, one user at a time."""

import numpy as np
import pytest
import torch
from torch import Tensor

from rtrain.errors import ConfigError
from rtrain.metrics.catalogue import NO_ITEM, Seen, rank_catalogue


def jagged(lists: list[list[int]]) -> Seen:
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in lists])])
    flat = [i for x in lists for i in x]
    return Seen(items=torch.tensor(flat, dtype=torch.int64), offsets=torch.tensor(offsets, dtype=torch.int64))


def one_by_one(users: Tensor, items: Tensor, k: int, seen: list[list[int]]) -> list[list[int]]:
    found = []
    for user, had in zip(users.numpy(), seen, strict=True):
        scores = items.numpy() @ user
        order = [i for i in np.argsort(-scores, kind="stable").tolist() if i not in set(had)]
        places = min(k, len(items))
        found.append((order + [NO_ITEM] * places)[:places])
    return found


@pytest.mark.parametrize("k", [1, 7, 40, 100])
@pytest.mark.parametrize("block", [None, 1, 8])
@pytest.mark.parametrize("values", [2, 5, 1000])
def test_order_is_that_of_a_stable_sort(k: int, block: int | None, values: int) -> None:
    # Whole numbers: float32 products are exact, so ties (nearly all scores, with two values) are real ties.
    draw = np.random.default_rng(values)
    users = torch.tensor(draw.integers(0, values, (30, 4)), dtype=torch.float32)
    items = torch.tensor(draw.integers(0, values, (40, 4)), dtype=torch.float32)
    seen = [draw.integers(0, 40, draw.integers(0, 30)).tolist() for _ in range(28)] + [[], list(range(40))]
    ranked = rank_catalogue(users, items, k=k, seen=jagged(seen), block_users=block)
    assert ranked.items_UK.tolist() == one_by_one(users, items, k, seen)
    placed = ranked.items_UK != NO_ITEM
    expected = (users @ items.T).gather(1, ranked.items_UK.clamp(min=0))
    assert torch.equal(ranked.scores_UK[placed], expected[placed])
    assert (ranked.scores_UK[~placed] == -torch.inf).all()


def test_no_user_at_all() -> None:
    assert rank_catalogue(torch.empty(0, 3), torch.ones(5, 3), k=2).items_UK.shape == (0, 2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": 0}, "at least 1"),
        ({"block_users": 0}, "at least 1"),
        ({"items_ID": torch.ones(4, 2)}, "same D"),
        ({"items_ID": torch.ones(0, 3)}, "at least one item"),
        ({"seen": jagged([[1]])}, "2 users"),
        ({"seen": jagged([[4], []])}, "outside the table's rows 0..3"),
        ({"seen": Seen(items=torch.tensor([1, 2]), offsets=torch.tensor([0, 2, 1]))}, "must rise"),
        ({"users_UD": torch.tensor([[1.0, 1, 1], [1, torch.nan, 1]])}, "not a number"),
    ],
)
def test_refused(change: dict[str, object], says: str) -> None:
    given = {"users_UD": torch.ones(2, 3), "items_ID": torch.ones(4, 3), "k": 2} | change
    with pytest.raises(ConfigError, match=says):
        rank_catalogue(**given)  # type: ignore[arg-type]
