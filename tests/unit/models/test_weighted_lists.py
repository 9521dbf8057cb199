"""A list whose ids have weights is pooled as torch pools it, with its gradient; where it cannot be, it is refused."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import embedding_bag

from rtrain.batch import Jagged
from rtrain.errors import ConfigError
from rtrain.models.dcnv2 import DCNv2
from rtrain.models.din import DIN
from rtrain.models.dlrm import DLRM
from rtrain.nn.tables import VECTORS, WEIGHTS, Table, TableOptions
from rtrain.schema import Dense, Id, IdList, Schema

SCHEMA = Schema(
    features=(
        Id(name="item", rows=7),
        IdList(name="seen", rows=7, table="item", weights="rated"),
        IdList(name="plain", rows=7, table="item"),
        IdList(name="summed", rows=6, weights="much"),
    )
)
NAMES = tuple(f.name for f in SCHEMA.ids)
SUM = (TableOptions(table="summed", pooling="sum"),)
ROWS = 40


def some() -> Jagged:
    """Rows of 0 to 5 ids; of the first row that has two, weights of 0 that give no mean, of the next huge ones."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 6, (len(NAMES), ROWS), generator=draw)
    lengths[0], lengths[1, :3] = 1, torch.tensor([0, 2, 2])
    count = int(lengths.sum())
    weights = torch.randn(count, generator=draw)
    weights[:ROWS] = 1  # item
    weights[ROWS : ROWS + 4] = torch.tensor([0.0, 0.0, 3e38, 3e38])
    first = int(lengths[:2].sum())
    weights[first : first + int(lengths[2].sum())] = 1  # plain
    values = torch.randint(0, 6, (count,), generator=draw)
    return Jagged(NAMES, values, lengths.flatten().int(), weights)


def pooled(ids: Jagged, feature: str, weight: torch.Tensor, *, mean: bool) -> torch.Tensor:
    """By torch, of weights that are divided in plain Python."""
    at, lengths = ids.keys.index(feature), ids.lengths.view(len(ids.keys), -1)
    start = int(lengths[:at].sum())
    assert ids.weights is not None
    factors, offsets = [], []
    for length in lengths[at].tolist():
        offsets.append(len(factors))
        first = start + len(factors)
        of_row = ids.weights[first : first + length].tolist()
        whole = math.fsum(abs(w) for w in of_row) if mean else 1.0
        factors += [w / (whole or 1.0) for w in of_row]
    values = ids.values[start : start + len(factors)]
    shares = torch.tensor(factors, dtype=torch.float32)
    return embedding_bag(values, weight, torch.tensor(offsets), mode="sum", per_sample_weights=shares)


def test_sums_and_means_are_torchs_own_with_their_gradients() -> None:
    model, ids = DCNv2(dim=4, tables=SUM).build(SCHEMA, seed=0), some()
    tables = {name.split(".")[-2]: p for name, p in model.tables.named_parameters()}
    plain = {name: p.detach().clone().requires_grad_() for name, p in tables.items()}
    wanted = torch.cat(
        [
            pooled(ids, "item", plain["item"], mean=False),
            pooled(ids, "seen", plain["item"], mean=True),
            pooled(ids, "plain", plain["item"], mean=True),
            pooled(ids, "summed", plain["summed"], mean=False),
        ],
        dim=1,
    )
    found = model.tables(ids)[VECTORS]
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    assert not found[1, 4:8].any() and found[2, 4:8].abs().max() > 0.01  # weights of 0, and of 3e38 each
    factors = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (wanted * factors).sum().backward()
    (found * factors).sum().backward()
    for name, table in tables.items():
        grad = plain[name].grad
        assert grad is not None and grad.abs().max() > 0.1
        torch.testing.assert_close(table.grad, grad, atol=1e-5, rtol=1e-5)


def test_lists_without_weights_are_to_the_bit_what_they_were() -> None:
    """Beside one that has: they are handed weights of 1."""
    ids, without = some(), replace(SCHEMA, features=tuple(replace(f, **NONE[type(f)]) for f in SCHEMA.features))
    weighted, plain = (DCNv2(dim=4).build(schema, seed=0).tables for schema in (SCHEMA, without))
    plain.load_state_dict(weighted.state_dict())
    a, b = weighted(ids)[VECTORS], plain(replace(ids, weights=None))[VECTORS]
    assert torch.equal(a[:, [0, 1, 2, 3, 8, 9, 10, 11]], b[:, [0, 1, 2, 3, 8, 9, 10, 11]])
    assert not torch.allclose(a[:, 4:8], b[:, 4:8])


NONE: dict[type, dict[str, str]] = {Id: {}, IdList: {"weights": ""}}


def test_first_order_weights_are_weighted_too() -> None:
    schema, ids = replace(SCHEMA, features=(*SCHEMA.features, Dense(name="x"))), some()
    model = DLRM(dim=4, bottom=(4,), top=(4,), first_order=True, tables=SUM).build(schema, seed=0)
    table = dict(model.tables.named_parameters())["bags.embedding_bags.summed_first.weight"]
    table.data.normal_(generator=torch.Generator().manual_seed(2))
    found = model.tables(ids)[WEIGHTS][:, 12:]
    torch.testing.assert_close(found, pooled(ids, "summed", table, mean=False), atol=1e-6, rtol=1e-6)


def test_a_sequence_has_no_weights() -> None:
    with pytest.raises(ConfigError) as caught:
        DIN(dim=4, history="seen", candidate="item").blueprint(SCHEMA)
    assert str(caught.value) == (
        "feature 'seen': its weights 'rated' are of a pooled list, but DIN reads table 'item' as the sequence 'seen'. "
        "Leave the weights out, or give a list that is pooled its own table"
    )


class Forgets(DCNv2):
    """A user's own tables, which say nothing of weights."""

    def table_list(self, schema: Schema) -> tuple[Table, ...]:
        return tuple(replace(table, weighted=()) for table in super().table_list(schema))


def test_a_model_that_would_not_read_them_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'rated' are not read: table_list of Forgets does not name it in Table.w"):
        Forgets(dim=4).blueprint(SCHEMA)
