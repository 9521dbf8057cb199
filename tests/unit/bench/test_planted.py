"""What planted rows teach lies between nothing and the truth, and a weight alone is found as its formula says."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from bench.planted import Rows, _found, taught
from rtrain.data.synthetic import OF_DENSE, Weights, plant


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    path = Path(tmp_path_factory.mktemp("planted")) / "rows.parquet"
    plant(path, rows=20_000)
    return Rows.read(path, slice(None))


def flat(weights: Weights) -> np.ndarray:
    pairs = [x for pair in weights.pairs for x in (pair.of_one, pair.of_other)]
    return np.concatenate([x.ravel() for x in (weights.dense, *weights.ids, *pairs)])


def test_the_planted_weights_give_the_planted_probability(rows: Rows) -> None:
    logit = Weights.drawn().logit(rows.dense_DN, rows.ids_FN)
    assert np.allclose(1 / (1 + np.exp(-logit)), rows.planted_N, rtol=1e-6)  # numbers are read as float32


def test_no_row_teaches_nothing_and_endless_rows_the_truth(rows: Rows) -> None:
    true, random = Weights.drawn(), np.random.default_rng(0)
    assert np.abs(flat(taught(true, rows, 1e-12, random))).max() < 1e-3
    read = [np.unique(ids) for ids in rows.ids_FN]
    found = taught(true, rows, 1e12, random)
    for ids, weight, kept in zip(read, true.ids, found.ids, strict=True):
        assert np.allclose(weight[ids], kept[ids], atol=1e-2)
        assert not kept[np.setdiff1d(np.arange(len(weight)), ids)].any()
    assert [f.name for f in fields(Weights)] == ["dense", "ids", "pairs"]  # no part is left out here
    for pair, kept in zip(true.pairs, found.pairs, strict=True):
        # A vector beside fewer others than it has numbers is known in their directions alone.
        often = np.bincount(rows.ids_FN[pair.one], minlength=len(pair.of_one)) > 500
        many = len(np.unique(rows.ids_FN[pair.other])) > 8
        assert not many or np.allclose(pair.of_one[often], kept.of_one[often], atol=1e-2)


def test_a_number_is_shrunk_by_what_its_rows_say(rows: Rows) -> None:
    """The mean over draws is the weight times I / (1 + I); of 2,000 draws it is known to 2 % of a deviation."""
    true = Weights.drawn()
    information = 0.01 * OF_DENSE**2 * (rows.dense_DN**2 @ (rows.planted_N * (1 - rows.planted_N)))
    few = Rows(rows.dense_DN[:, :0], [ids[:0] for ids in rows.ids_FN], rows.planted_N[:0], rows.label_N[:0])
    assert not flat(taught(true, few, 1.0, np.random.default_rng(0))).any()
    draws = np.stack([_found(true.dense, information, np.random.default_rng(n)) for n in range(2000)])
    shrunk = information / (1 + information)
    assert np.allclose(draws.mean(0), shrunk * true.dense, atol=5 * 0.02)
    assert np.allclose(draws.var(0), information / (1 + information) ** 2, rtol=0.2)
