"""A lookup asks the device for nothing that the host has counted: a device is here tensors that nobody can read.

Torch's fake tensors have shapes and no values, and raise when they are read, as a GPU's would be waited for.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torchrec import KeyedJaggedTensor

from rtrain.batch import Jagged, each
from rtrain.nn.bags import Tables, to_kjt
from rtrain.nn.tables import VECTORS, Table, mask, sequence

IDS = Jagged(
    ("user", "kinds", "seen"),
    torch.tensor([4, 0, 1, 2, 3, 5, 1, 6]),
    torch.tensor([1, 1, 0, 3, 0, 0, 2, 1, 0], dtype=torch.int32),
    torch.tensor([1.0, 1.0, 0.5, 2.0, 1.0, 1.0, 1.0, 1.0]),
)
TABLES = (
    Table(name="seen", rows=9, dim=4, features=("seen",), sequences=("seen",)),
    Table(name="kinds", rows=9, dim=4, features=("kinds",), means=("kinds",), weighted=("kinds",)),
    Table(name="user", rows=9, dim=4, features=("user",)),
)


@pytest.fixture
def unread() -> Any:
    """Tensors that are made or taken within have no values."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def test_counts_go_wherever_the_ids_go() -> None:
    assert (IDS.per_key, IDS.longest) == ((2, 3, 3), {"user": 1, "kinds": 3, "seen": 2})
    same = each(IDS, torch.clone)
    assert same.values is not IDS.values and torch.equal(same.values, IDS.values)
    for made in (same, IDS.extended(2), IDS.rows(0, 1), IDS.rows(1, 3), IDS.rows(1, 1), IDS.rows(0, 3)):
        anew = Jagged(made.keys, made.values, made.lengths, made.weights)
        assert made.per_key == anew.per_key and made.longest == anew.longest
        assert np.array_equal(made.host, made.lengths.numpy())
    first, rest = IDS.rows(0, 1), IDS.rows(1, 3)
    assert (first.values.tolist(), first.lengths.tolist()) == ([4, 1, 2, 3, 5, 1], [1, 3, 2])
    assert (rest.values.tolist(), rest.lengths.tolist()) == ([0, 6], [1, 0, 0, 0, 1, 0])
    assert first.weights is not None and first.weights.tolist() == [1.0, 0.5, 2.0, 1.0, 1.0, 1.0]


def test_lengths_that_do_not_add_up_are_told() -> None:
    with pytest.raises(AssertionError, match="add up to 3, but there are 2"):
        Jagged(("a",), torch.arange(2), torch.tensor([1, 2], dtype=torch.int32))


def test_cutting_and_padding_rows_reads_nothing(unread: FakeTensorMode) -> None:
    ids = each(IDS, unread.from_tensor)
    assert [x.shape for x in (ids.rows(1, 3).values, ids.extended(2).lengths, ids.padded("kinds"))] == [
        (2,),
        (15,),
        (3, 3),
    ]


def test_torchrec_is_told_what_it_would_ask_for(unread: FakeTensorMode) -> None:
    ids = each(IDS, unread.from_tensor)
    untold = KeyedJaggedTensor(keys=list(ids.keys), values=ids.values, lengths=ids.lengths)
    with pytest.raises(DataDependentOutputException):
        untold.dist_splits([1, 2])
    kjt = to_kjt(ids, ids.weights)
    assert kjt.dist_splits([1, 2]) == [[3, 6], [2, 6], [2, 6]]
    assert kjt.permute([2, 0]).dist_splits([1, 1]) == [[3, 3], [3, 2], [3, 2]]
    assert [part.values().shape for part in kjt.split([1, 2])] == [(2,), (6,)]
    assert kjt["seen"].values().shape == (3,)


def test_a_lookup_reads_nothing(unread: FakeTensorMode) -> None:
    given = Tables(TABLES, IDS.keys)(each(IDS, unread.from_tensor))
    assert {name: tuple(x.shape) for name, x in given.items()} == {
        VECTORS: (3, 8),
        sequence("seen"): (3, 2, 4),
        mask("seen"): (3, 2),
    }


def test_what_is_put_on_a_device_for_a_lookup_is_put_there_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tables, made = Tables(TABLES, IDS.keys), []
    real = torch.tensor
    monkeypatch.setattr("rtrain.nn.bags.torch.tensor", lambda *of, **how: made.append(of) or real(*of, **how))
    first = tables(IDS)
    assert made
    made.clear()
    again = tables(IDS)
    assert not made and all(torch.equal(first[name], again[name]) for name in first)
