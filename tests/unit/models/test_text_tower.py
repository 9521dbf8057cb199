"""What an item's words say of it, and of it alone: whatever stands beside it in the batch."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rtrain.data.columns import Lists
from rtrain.data.retrieval import RetrievalFacts
from rtrain.data.side import looked_up
from rtrain.models.plan import drawn
from rtrain.models.text_tower import TextTower, TextTowers

# Words of six items; the last two say the same, and item 0 says nothing.
TITLES = ([], [3], [1, 2], [2, 1], [4, 1, 2, 3], [4, 1, 2, 3])
FACTS = RetrievalFacts(
    users=4, items=6, longest=None, negatives=0, item_features={"item_kind": 3, "item_title": 5},
    texts={"item_title": 4},
)  # fmt: skip
# The same sums in matrices of another shape: some roundings of 6e-8.
ROUNDING = 1e-6


def config(**changes: Any) -> TextTower:
    return TextTower(**{"dim": 8, "hidden": (16,), "layers": 2, "scale": 0.5, **changes})


def tower(facts: RetrievalFacts = FACTS, **changes: Any) -> TextTowers:
    (piece,) = config(**changes).pieces(facts)
    built = drawn(piece, 0, first=piece.name)
    assert isinstance(built, TextTowers)
    return built


def table(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))


def given(
    rows: list[list[int]], *, ids: bool = True, more: int = 0, titles: Any = TITLES, words: Tensor | None = None
) -> tuple[Tensor, ...]:
    """What the tower takes of rows with these candidates; `more`: columns that only pad."""
    words = table(5, 1) if words is None else words
    item = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for row, candidates in enumerate(rows):
        item[row, : len(candidates)] = torch.tensor(candidates)
    asked = Lists.of(np.concatenate(rows).astype(np.int64), np.array([len(row) for row in rows]))
    found: list[Tensor] = [table(len(rows), 2), item, *([table(6, 3)[item]] if ids else [])]
    kinds = [[number % 3] for number in range(6)]
    for lists, vectors in ((kinds, table(3, 4)), (titles, words)):
        feature = Lists.of(np.concatenate(lists).astype(np.int64), np.array([len(of) for of in lists]))
        looked = looked_up(feature, asked)
        place = torch.nn.functional.pad(torch.from_numpy(looked.place), (0, more), value=-1)
        padded = torch.full((*place.shape, 8), 7.0)  # what lies behind a row's end says nothing
        padded[place >= 0] = vectors[torch.from_numpy(looked.values)]
        found += [padded, place]
    return tuple(found)


def items(model: TextTowers, rows: list[list[int]], **changes: Any) -> Tensor:
    found: Tensor = model(*given(rows, ids=model.ids, **changes))[1]
    assert found.shape[:2] == (len(rows), 1)
    return found[:, 0]


@pytest.mark.parametrize("ids", [True, False])
def test_an_item_is_the_same_alone_and_beside_others_and_padded(ids: bool) -> None:
    model = tower(ids=ids)
    alone = torch.cat([items(model, [[number]])[0] for number in range(6)])
    for rows in ([[0, 1, 2], [3, 4, 5]], [[5, 4, 3], [2, 1, 0]], [[4, 4, 0], [2, 4, 2], [0, 0, 0]]):
        for more in (0, 3):
            assert torch.allclose(items(model, rows, more=more), alone[torch.tensor(rows)], atol=ROUNDING)


def test_a_row_without_candidates_takes_nothing_from_the_others() -> None:
    """As rows that pad a batch, whose candidates are all zeros."""
    model = tower()
    whole = items(model, [[0, 2], [], [4, 3]])
    assert torch.allclose(whole[[0, 2]], items(model, [[0, 2], [4, 3]]), atol=ROUNDING)
    titled = ([1], *TITLES[1:])  # item 0, whose id they have, has a word now
    mixed = items(model, [[], [0, 2]], titles=titled)
    assert torch.allclose(mixed[1:], items(model, [[0, 2]], titles=titled), atol=ROUNDING)


def test_no_word_of_one_candidate_is_read_for_another() -> None:
    model, words = tower(), table(5, 1).requires_grad_()
    items(model, [[1, 2, 4]], words=words)[0, 1].sum().backward()
    assert words.grad is not None
    assert words.grad.abs().sum(1).bool().tolist() == [False, True, True, False, False]


def test_the_order_of_words_counts_and_each_sees_those_behind_it() -> None:
    model = tower(RetrievalFacts(4, 6, None, 0, item_features={"item_title": 5}, texts={"item_title": 4}), ids=False)

    def title(*words: int) -> Tensor:
        user, item, *_, vectors, place = given([[0]], ids=False, titles=[list(words), *TITLES[1:]])
        found: Tensor = model(user, item, vectors, place)[1]
        return found

    assert not torch.allclose(title(1, 2), title(2, 1), atol=1e-3)


def test_a_word_sees_those_behind_it_and_none_that_is_not_there() -> None:
    attention, x = tower().features[1].blocks[0].attention, table(3, 1).requires_grad_()  # type: ignore[union-attr, index]
    attention(x.unsqueeze(0), torch.tensor([[True, True, False]]))[0, 0].sum().backward()
    assert x.grad is not None and x.grad.abs().sum(1).bool().tolist() == [True, True, False]


def test_without_ids_a_new_item_has_a_vector_of_its_title_alone() -> None:
    texts = RetrievalFacts(4, 6, None, 0, item_features={"item_title": 5}, texts={"item_title": 4})
    for ids, alike in ((False, True), (True, False)):
        model = tower(texts, ids=ids)
        user, item, *own, _, _, vectors, place = given([[4, 5, 3]], ids=ids)
        four, five, three = model(user, item, *own, vectors, place)[1][0, 0]
        assert torch.allclose(four, five, atol=ROUNDING) == alike
        assert not torch.allclose(five, three, atol=1e-3)


def test_without_ids_items_have_no_table() -> None:
    for ids in (True, False):
        blueprint = config(ids=ids).blueprint(FACTS)
        names = [name for name in ("user", "item", "item_kind", "item_title") if ids or name != "item"]
        assert [of.name for of in blueprint.tables] == list(blueprint.features) == names


@pytest.mark.parametrize("ids", [True, False])
def test_a_batch_without_a_row_has_gradients_too(ids: bool) -> None:
    """As on a rank to which no row of a batch fell."""
    model = tower(ids=ids)
    users, found = model(*(x[:0] for x in given([[1, 2]], ids=ids)))
    assert users.shape == (0, 1, 8) and found.shape == (0, 1, 2, 8)
    (users.sum() + found.sum()).backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in model.parameters())


def test_padded_is_the_same_as_jagged() -> None:
    rows = [[1, 4], [0, 2, 5], [3]]
    jagged, padded = (tower(attention=how)(*given(rows)) for how in ("jagged", "padded"))
    assert all(torch.allclose(a, b, atol=ROUNDING) for a, b in zip(jagged, padded, strict=True))
