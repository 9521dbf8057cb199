"""LightGCN's graph and what is spread along it, beside sums written out; `tests/parallel` holds its training."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rtrain.batch import Jagged
from rtrain.data.graph import Graph, adjacency, dealt
from rtrain.data.retrieval import RetrievalFacts
from rtrain.errors import ConfigError
from rtrain.models.light_gcn import LightGCN, LightGCNTower, spread

FACTS = RetrievalFacts(users=3, items=4, longest=None, negatives=1, graph=True)
EDGES = ((0, 1), (0, 2), (1, 2))  # user 2 and items 0 and 3 have nobody


def graph() -> Graph:
    user, item = (np.array(ids) for ids in zip(*EDGES, strict=True))
    return Graph(user, item, users=3, items=4)


def dense(of: Graph) -> Tensor:
    """[N, N]"""
    begin, node, weight = of.edges.values()
    return torch.sparse_csr_tensor(begin, node, weight, (len(begin) - 1,) * 2).to_dense()


def test_an_edge_weighs_one_over_the_root_of_its_ends_degrees() -> None:
    expected = torch.zeros(7, 7)
    for user, item, weight in ((0, 4, 0.5**0.5), (0, 5, 0.5), (1, 5, 0.5**0.5)):
        expected[user, item] = expected[item, user] = weight
    torch.testing.assert_close(dense(graph()), expected)


@pytest.mark.parametrize(("count", "rows"), [(7, 3), (2, 5), (6, 6), (5, 1)])
def test_tables_are_dealt_whole_and_evenly(count: int, rows: int) -> None:
    lists = dealt(count, rows)
    assert lists.values.tolist() == list(range(count))
    assert lists.lengths.sum() == count and np.ptp(lists.lengths) <= 1


def test_what_is_spread_is_the_mean_of_all_steps_and_so_is_its_gradient() -> None:
    one, other = np.array([0, 0, 1]), np.array([4, 5, 5])
    whole = adjacency(one, other, 7).double()
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(7, 2, generator=draw, dtype=torch.float64, requires_grad=True)
    times = whole.to_dense()
    expected = (x + times @ x + times @ times @ x) / 3
    edges = whole.crow_indices(), whole.col_indices(), whole.values()
    torch.testing.assert_close(spread(edges, x, 2), expected)
    assert torch.autograd.gradcheck(lambda x: spread(edges, x, 2), (x,))


def named(rows: int) -> dict[str, Any]:
    """What the tower takes of a batch of so many rows, each of user 1 with items 2 and 0."""
    found: dict[str, Any] = {}
    for table, count, low in (("users", 3, 0.0), ("items", 4, 10.0)):
        lengths = torch.from_numpy(dealt(count, rows).lengths)
        real = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
        own = low + torch.arange(count * 4).view(count, 4).float()
        found[f"{table}_BTE"] = torch.zeros(*real.shape, 4).masked_scatter(real.unsqueeze(-1), own)
        found[f"real_{table}_BT"] = real
    asked = {"user_B1": torch.ones(rows, 1).long(), "item_BK": torch.tensor([[2, 0]]).repeat(rows, 1)}
    edges = zip(("begin_N", "node_M", "weight_M"), graph().edges.values(), strict=True)
    return found | dict(edges) | asked


def own_vectors() -> Tensor:
    return torch.cat([torch.arange(12.0).view(3, 4), 10 + torch.arange(16.0).view(4, 4)])


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_rows_get_the_spread_vectors_of_their_own_ids_and_cost_the_length_of_the_tables(rows: int) -> None:
    tower = LightGCNTower(LightGCN(dim=4, layers=1, l2=0.5), users=3)
    queries, candidates, cost = tower(**named(rows))
    own = own_vectors()
    whole = (own + dense(graph()) @ own) / 2
    torch.testing.assert_close(queries, whole[1].expand(rows, 1, 4))
    torch.testing.assert_close(candidates, whole[[5, 3]].expand(rows, 1, 2, 4))
    torch.testing.assert_close(cost, 0.25 * own[[1, 5, 3]].square().sum().expand(rows, 1))
    assert len(tower.eval()(**named(rows))) == 2


def test_a_rank_without_a_row_of_a_batch_has_nothing_to_say_and_says_it() -> None:
    """Its batch is padded with a row that no id is looked up for."""
    given = named(1)
    given |= {f"real_{table}_BT": torch.zeros_like(given[f"real_{table}_BT"]) for table in ("users", "items")}
    queries, candidates, cost = LightGCNTower(LightGCN(dim=4), users=3)(**given)
    assert not queries.any() and not candidates.any() and not cost.any()


def test_all_rows_of_both_tables_are_asked_for_beside_the_batchs_own_ids() -> None:
    own = Jagged(("user", "item"), torch.tensor([1, 0, 3, 2]), torch.tensor([1, 1, 1, 1], dtype=torch.int32))
    ids = graph().with_tables(own, 2)
    assert ids.keys == ("user", "item", "users", "items")
    assert ids.values.tolist() == [1, 0, 3, 2, 0, 1, 2, 0, 1, 2, 3]
    assert ids.lengths.tolist() == [1, 1, 1, 1, 2, 1, 2, 2]
    assert ids.padded("items").tolist() == [[0, 1], [2, 3]] and ids.padded("users").tolist() == [[0, 1], [2, 0]]
    none = graph().with_tables(Jagged(own.keys, own.values[:0], own.lengths[:0]), 0)
    assert none.padded("users").shape == (0, 1)


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("model.layers: must be at least 1, got 0", lambda: LightGCN(layers=0)),
        ("model.l2: must be at least 0, got -1", lambda: LightGCN(l2=-1.0)),
        (
            "data.users, data.items: LightGCN looks up all 200,004 rows in each step",
            lambda: LightGCN().blueprint(RetrievalFacts(200_000, 4, None, 1, graph=True)),
        ),
        (
            "data: LightGCN is trained on Graph. Give the data as rtrain.Graph",
            lambda: LightGCN().blueprint(RetrievalFacts(3, 4, None, 1)),
        ),
    ],
)
def test_what_it_cannot_be_is_one_line(message: str, make: Any) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
