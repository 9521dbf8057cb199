"""What a table gives: pooled or not, with the options of its own."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rtrain.batch import Jagged
from rtrain.models.dcnv2 import DCNv2
from rtrain.models.din import DIN
from rtrain.models.ranking import RankingConfig
from rtrain.nn.tables import BLOCK_ROWS, VECTORS, Table, TableOptions, fill, initial_rows
from rtrain.schema import Id, IdList, IdSequence, Schema

SCHEMA = Schema(
    features=(
        Id(name="user", rows=5),
        IdList(name="kinds", rows=6),
        Id(name="item", rows=7),
        IdList(name="seen", rows=7, table="item"),
        IdList(name="bought", rows=7, table="item"),
    )
)
# Two rows, and a third that only pads: it has no ids at all.
IDS = Jagged(
    ("user", "kinds", "item", "seen", "bought"),
    torch.tensor([4, 0, 1, 2, 3, 5, 1, 1, 0, 6, 6, 3]),
    torch.tensor([1, 1, 0, 3, 0, 0, 1, 1, 0, 2, 1, 0, 0, 2, 0], dtype=torch.int32),
)


def test_every_feature_gets_its_vector_and_the_history_its_sequence() -> None:
    options = (TableOptions(table="user", dim=8), TableOptions(table="kinds", pooling="sum"))
    model = DIN(dim=4, history="seen", candidate="item", tables=options).build(SCHEMA, seed=0)
    weights = {name.split(".")[-2]: p for name, p in model.tables.named_parameters()}
    assert set(dict(model.tables.named_parameters())) == {
        "bags.embedding_bags.user.weight",
        "bags.embedding_bags.kinds.weight",
        "sequences.embeddings.item.weight",
    }
    vectors, history, mask = model.tables(IDS).values()
    user, kinds, item = weights["user"], weights["kinds"], weights["item"]
    none = torch.zeros(4)
    expected = torch.stack(
        [
            torch.cat([user[4], kinds[1] + kinds[2] + kinds[3], item[5], none]),
            torch.cat([user[0], none, item[1], (item[6] + item[3]) / 2]),
            torch.zeros(20),
        ]
    )
    assert torch.allclose(vectors, expected, atol=1e-7)
    assert mask.tolist() == [[True, True], [True, False], [False, False]]
    assert torch.equal(history, torch.stack([item[[1, 0]], torch.stack([item[6], none]), torch.zeros(2, 4)]))
    history.sum().backward()
    assert weights["item"].grad is not None
    assert weights["item"].grad[:, 0].tolist() == [1, 1, 0, 0, 0, 0, 1]


def test_a_mean_is_torchs_own_with_its_gradient() -> None:
    """What fbgemm sums is divided here, so each of n ids has 1 / n of the gradient; a row without ids gives none."""
    model = DCNv2(dim=4).build(SCHEMA, seed=0)
    draw = torch.Generator().manual_seed(1)
    lengths = torch.randint(0, 6, (40,), generator=draw)
    lengths[:2] = torch.tensor([0, 1])
    values = torch.randint(0, SCHEMA.tables["kinds"], (int(lengths.sum()),), generator=draw)
    ones, none = torch.ones(40, dtype=torch.int32), torch.zeros(80, dtype=torch.int32)
    given = Jagged(
        ("user", "kinds", "item", "seen", "bought"),
        torch.cat([torch.zeros(40, dtype=torch.long), values, torch.ones(40, dtype=torch.long)]),
        torch.cat([ones, lengths.int(), ones, none]),
    )
    weight = dict(model.tables.named_parameters())["bags.embedding_bags.kinds.weight"]
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)[:-1]])
    plain = weight.detach().clone().requires_grad_()
    wanted = torch.nn.functional.embedding_bag(values, plain, offsets, mode="mean")
    found = model.tables(given)[VECTORS][:, 4:8]
    factors = torch.randn(40, 4, generator=draw)
    (wanted * factors).sum().backward()
    (found * factors).sum().backward()
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    assert plain.grad is not None and plain.grad.abs().max() > 0.1
    torch.testing.assert_close(weight.grad, plain.grad, atol=1e-6, rtol=1e-6)


class History(RankingConfig):
    """Reads all that it is given as sequences."""

    def sequence_features(self, schema: Schema) -> tuple[str, ...]:
        return self.feature_names(schema)

    def dense_part(self, schema: Schema) -> nn.Module:
        return HistoryTower(self.width(schema) + self.dim * len(schema.ids))


class HistoryTower(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.last = nn.Linear(width, 1)

    def forward(self, dense: Tensor, vectors: Tensor, *several: Tensor) -> Tensor:
        sums = [vectors_BTE.sum(1) for vectors_BTE in several[::2]]
        logits: Tensor = self.last(torch.cat([dense, vectors, *sums], dim=1)).squeeze(1)
        return logits


def test_a_tower_may_read_every_feature_as_a_sequence() -> None:
    schema = Schema(features=(IdSequence(name="seen", rows=7), IdSequence(name="bought", rows=7, table="seen")))
    model = History(dim=4).build(schema, seed=0)
    ids = Jagged(("seen", "bought"), torch.tensor([1, 2, 3]), torch.tensor([2, 0, 1, 0], dtype=torch.int32))
    vectors, *several = model.tables(ids).values()
    assert vectors.shape == (2, 0) and vectors.dtype == torch.float32
    assert [tuple(x.shape) for x in several] == [(2, 2, 4), (2, 2), (2, 1, 4), (2, 1)]
    model.tower(torch.zeros(2, 0), vectors, *several).sum().backward()
    (table,) = model.tables.parameters()
    assert table.grad is not None and table.grad.abs().sum(1).gt(0).tolist() == [False, True, True, True] + [False] * 3


def test_first_weights_follow_their_options() -> None:
    table = Table(name="t", rows=5000, dim=4, features=("f",), initial="normal", scale=0.5)
    drawn = initial_rows(table, 0, 0, 5000)
    # The standard deviation of 20,000 draws of one normal is known to 0.5 %; four of those are 2 %.
    assert abs(float(drawn.std()) / 0.5 - 1) < 0.02
    assert drawn.abs().max() > 1.0
    bounded = initial_rows(Table(name="t", rows=5000, dim=4, features=("f",), scale=0.1), 0, 0, 5000)
    assert 0.099 < float(bounded.abs().max()) <= 0.1
    zeros = Table(name="t", rows=50, dim=4, features=("f",), initial="zeros")
    assert not initial_rows(zeros, 0, 0, 50).any()


def test_options_reach_the_table() -> None:
    options = TableOptions(table="item", dim=8, pooling="sum", initial="normal", scale=0.01)
    tables = DCNv2(dim=4, tables=(options,)).table_list(SCHEMA)
    assert [(t.name, t.dim, t.means, t.initial, t.scale) for t in tables] == [
        ("user", 4, (), "uniform", None),
        ("kinds", 4, ("kinds",), "uniform", None),
        ("item", 8, (), "normal", 0.01),
    ]


@pytest.mark.parametrize("initial", ["uniform", "normal", "zeros"])
@pytest.mark.parametrize("rows", [1, BLOCK_ROWS, 2 * BLOCK_ROWS + 77])
def test_any_shard_begins_with_its_part_of_the_table(initial: Any, rows: int) -> None:
    table = Table(name="item", rows=rows, dim=12, features=("item",), initial=initial)
    whole, draw = initial_rows(table, 3, 0, rows), random.Random(rows)
    assert initial == "zeros" or rows == 1 or whole[0].ne(whole[-1]).any()
    for _ in range(12):
        first, last = sorted(draw.choices(range(rows + 1), k=2))
        left, right = sorted(draw.choices(range(0, 13, 4), k=2))
        shard = torch.full((last - first, right - left), torch.nan)
        fill(shard, table, 3, row=first, column=left)
        assert torch.equal(shard, whole[first:last, left:right])
    for first in {0, rows // 2}:
        kept = torch.full((rows - first, 12), torch.nan, dtype=torch.float16)
        fill(kept, table, 3, row=first)
        assert torch.equal(kept, whole[first:].half())  # drawn as ever, then rounded
