"""What the planted rows (recipes/dlrm_synthetic.py) can teach: the test AUC of the truth, and of what is left of it
when each weight is known as well as so many training rows tell.

python -m bench.planted

A weight w of prior N(0, 1), of which the rows hold the information I, is found as a draw of N(w, 1 / I), shrunk by
I / (1 + I): the mean of its posterior, all other weights known. I is the sum over the rows that read the weight of
p (1 - p) x squared, where x is what it is multiplied by: of a vector of a pair, a matrix of the other one's vectors.
Rows beyond those planted are counted as more of the same. A logistic model of the right structure and prior comes as
far (docs/quality.md), so no model is to be expected beyond.

Shape legend: N rows, F id columns, R rows of a table, K latent dim.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bench.asked import parser
from rtrain.data.synthetic import DENSE, IDS, LATENT, OF_DENSE, OF_ID, OF_PAIR, Pair, Weights, plant
from rtrain.metrics.curves import auc

TIMES, DRAWS = (1, 2, 4, 8, 16), 5
TRAIN, TEST = 0.93, 0.05
"""The first rows train and the last ones test, as in the recipe."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Planted rows."""

    dense_DN: Floats
    ids_FN: Sequence[NDArray[np.int32]]
    planted_N: Floats
    label_N: Floats

    @classmethod
    def read(cls, path: Path, part: slice) -> "Rows":
        """A part of those of a file."""
        table = pq.read_table(path)

        def column(name: str) -> NDArray[np.generic]:
            values: NDArray[np.generic] = table.column(name).to_numpy()[part]
            return values

        dense = np.stack([column(name) for name in DENSE]).astype(np.float64)
        label = column("label").astype(np.float64)
        return cls(dense, [column(n).astype(np.int32) for n in IDS], column("planted").astype(np.float64), label)


def taught(true: Weights, train: Rows, times: float, random: np.random.Generator) -> Weights:
    """The weights as `times` as many rows teach them."""
    each_N = times * train.planted_N * (1 - train.planted_N)
    dense = _found(true.dense, OF_DENSE**2 * (train.dense_DN**2 @ each_N), random)
    of_ids = zip(true.ids, train.ids_FN, strict=True)
    ids = tuple(_found(w, OF_ID**2 * np.bincount(ids_N, each_N, len(w)), random) for w, ids_N in of_ids)
    return replace(true, dense=dense, ids=ids, pairs=tuple(_pair(pair, train, each_N, random) for pair in true.pairs))


def _found(weight: Floats, information: Floats, random: np.random.Generator) -> Floats:
    """The posterior's mean where `weight` is the truth; what no row told is 0."""
    noise: Floats = np.sqrt(information) * random.standard_normal(weight.shape)
    found: Floats = (information * weight + noise) / (1 + information)
    return found


def _pair(pair: Pair, train: Rows, each_N: Floats, random: np.random.Generator) -> Pair:
    one_N, other_N = train.ids_FN[pair.one], train.ids_FN[pair.other]
    return replace(
        pair,
        of_one=_vectors(pair.of_one, one_N, pair.of_other[other_N], each_N, random),
        of_other=_vectors(pair.of_other, other_N, pair.of_one[one_N], each_N, random),
    )


def _vectors(
    true_RK: Floats, ids_N: NDArray[np.int32], beside_NK: Floats, each_N: Floats, random: np.random.Generator
) -> Floats:
    """As `_found`, of vectors that are read beside others."""
    information_RKK = np.empty((len(true_RK), LATENT, LATENT))
    for i in range(LATENT):
        for j in range(i + 1):
            told_R = np.bincount(ids_N, each_N * beside_NK[:, i] * beside_NK[:, j], len(true_RK))
            information_RKK[:, i, j] = information_RKK[:, j, i] = OF_PAIR**2 * told_R
    values_RK, axes_RKK = np.linalg.eigh(information_RKK)
    noise_RK = np.sqrt(values_RK.clip(min=0)) * random.standard_normal(true_RK.shape)
    told_RK = np.einsum("rij,rj->ri", information_RKK, true_RK) + np.einsum("rij,rj->ri", axes_RKK, noise_RK)
    found: Floats = np.linalg.solve(np.eye(LATENT) + information_RKK, told_RK[..., None])[..., 0]
    return found


def main() -> None:
    """Print the table."""
    parser("bench.planted", __doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "planted.parquet"
        plant(path)
        rows = pq.read_metadata(path).num_rows
        train, test = (Rows.read(path, part) for part in (slice(round(TRAIN * rows)), slice(-round(TEST * rows), None)))
    true, truth = Weights.drawn(), auc(test.planted_N, test.label_N)
    print(f"the truth: AUC {truth:.4f} on {len(test.label_N):,} test rows\n")
    print("| training rows | what they teach | below the truth |\n|---|---|---|")
    for times in TIMES:
        found = []
        for draw in range(DRAWS):
            weights = taught(true, train, times, np.random.default_rng((draw, times)))
            found.append(auc(weights.logit(test.dense_DN, test.ids_FN), test.label_N))
        count = f"{times * len(train.label_N) / 1e6:.2f} M"
        print(f"| {count} | {np.mean(found):.4f} | {truth - np.mean(found):.4f} |", flush=True)


if __name__ == "__main__":
    main()
