"""Rows in Criteo's shape whose labels a known model drew: 13 numbers, 26 id columns, zipf ids.

Because each label is a coin that falls 1 with the planted probability, no model can order the rows better
than that probability does: its AUC on the test rows is the best that can be reached there.

Shape legend: N rows, D numbers, F id columns, P planted pairs of columns, K latent dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rtrain.data.cached import write
from rtrain.metrics.curves import auc

NAME = "criteo-synthetic"
VERSION = 1
"""Raised whenever `plant` writes something else."""
SEED = 26
ROWS = 2_000_000
DENSE = tuple(f"i{n}" for n in range(1, 14))
IDS = tuple(f"c{n}" for n in range(1, 27))
LARGEST = 2_000
"""The larger tables of Criteo are cut to so many rows, so that the data is enough to learn every row."""
CRITEO: tuple[int, ...] = (1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194)
CRITEO += (27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572)
TABLE_ROWS = tuple(min(rows, LARGEST) for rows in CRITEO)
"""Rows of each id column's table, in the order of `IDS`."""
ZIPF = 1.2
"""An id's frequency goes with 1 / (id + 1) ** ZIPF."""
PAIRS, LATENT = 12, 4
"""Pairs of id columns that act together, and the dim of the vectors whose dot product says how."""
SPREAD_OF_IDS, SPREAD_OF_PAIRS, SPREAD_OF_DENSE = 0.8, 0.5, 0.6
"""Standard deviation in the logit of what the ids give one by one, the pairs, and the numbers."""
BIAS = -1.2


OF_DENSE, OF_ID = SPREAD_OF_DENSE * len(DENSE) ** -0.5, SPREAD_OF_IDS * len(IDS) ** -0.5
OF_PAIR = SPREAD_OF_PAIRS * (PAIRS * LATENT) ** -0.5
"""What a number's weight, an id's weight and a pair's dot product are multiplied by in the logit."""


@dataclass(frozen=True)
class Pair:
    """Two id columns, by their place in `IDS`, and the vectors [rows, K] whose dot products act."""

    one: int
    other: int
    of_one: NDArray[np.float64]
    of_other: NDArray[np.float64]


@dataclass(frozen=True)
class Weights:
    """The model that draws the labels: every weight is of a normal distribution of mean 0 and deviation 1."""

    dense: NDArray[np.float64]
    """[D]"""
    ids: tuple[NDArray[np.float64], ...]
    """[rows] of each id column."""
    pairs: tuple[Pair, ...]

    @classmethod
    def drawn(cls, seed: int = SEED) -> "Weights":
        """Those that `plant` plants."""
        model = np.random.default_rng(seed)
        dense = model.standard_normal(len(DENSE))
        ids = tuple(model.standard_normal(size) for size in TABLE_ROWS)
        return cls(dense, ids, tuple(_pair(model) for _ in range(PAIRS)))

    def logit(self, dense_DN: NDArray[np.floating], ids_FN: Sequence[NDArray[np.integer]]) -> NDArray[np.float64]:
        """[N]"""
        total = np.full(dense_DN.shape[1], BIAS)
        total += OF_DENSE * (self.dense @ dense_DN)
        for ids, weight in zip(ids_FN, self.ids, strict=True):
            total += OF_ID * weight[ids]
        for pair in self.pairs:
            of_one, of_other = pair.of_one[ids_FN[pair.one]], pair.of_other[ids_FN[pair.other]]
            total += OF_PAIR * np.einsum("nk,nk->n", of_one, of_other)
        return total


def plant(out_parquet: Path, *, rows: int = ROWS, seed: int = SEED) -> None:
    """Write the rows.

    Columns: i1..i13 float, c1..c26 int32, planted double (the probability), at int64 (the row), label int8.
    """
    random = np.random.default_rng(seed + 1)
    ids_FN = [_zipf(random, size, rows) for size in TABLE_ROWS]
    dense_DN = random.standard_normal((len(DENSE), rows), dtype=np.float32)
    planted = 1 / (1 + np.exp(-Weights.drawn(seed).logit(dense_DN, ids_FN)))
    columns = {name: pa.array(dense_DN[n]) for n, name in enumerate(DENSE)}
    columns |= {name: pa.array(ids_FN[n]) for n, name in enumerate(IDS)}
    label = (random.random(rows) < planted).astype(np.int8)
    columns |= {"planted": pa.array(planted), "at": pa.array(np.arange(rows)), "label": pa.array(label)}
    write(pa.table(columns), out_parquet, VERSION)


def best_auc(rows: pa.Table) -> float:
    """The AUC of the planted probability on these rows: what no model can beat but by luck."""
    return auc(rows.column("planted").to_numpy(), rows.column("label").to_numpy().astype(np.float64))


def _pair(model: np.random.Generator) -> Pair:
    one, other = (int(f) for f in model.choice(len(IDS), 2, replace=False))
    of_one, of_other = (model.standard_normal((TABLE_ROWS[f], LATENT)) for f in (one, other))
    return Pair(one, other, of_one, of_other)


def _zipf(random: np.random.Generator, size: int, rows: int) -> NDArray[np.int32]:
    shares = np.arange(1, size + 1) ** -ZIPF
    bounds = np.cumsum(shares / shares.sum())
    found: NDArray[np.int32] = np.searchsorted(bounds[:-1], random.random(rows), side="right").astype(np.int32)
    return found
