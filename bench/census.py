"""The UCI census rows ("Adult"): a network of numbers as they are and by bins, beside boosted trees.

python -m bench.census adult.csv            the CSV with its header, as many packages carry it; 3 seeds in one process

Each seed draws its own split, 70/10/20, and its best epoch is taken by the validation rows. The trees are
scikit-learn's histogram trees with its defaults on the same columns, the report's baseline.
"""

import statistics
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

import rtrain
from bench.asked import parser
from rtrain import (
    AUC,
    AdamW,
    Cluster,
    DCNv2,
    Dense,
    Duration,
    Evaluation,
    Handoff,
    Id,
    Interactions,
    LogLoss,
    Parallel,
    Random,
    RowWiseAdagrad,
    Run,
    Schedule,
    Schema,
)

NUMBERS = ("age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week")
WORDS = ("workclass", "education", "marital-status", "occupation", "relationship", "race", "sex", "native-country")
SEEDS, BINS = (0, 1, 2), 64
TREES = "gradient boosting on the same features"


def rows_of(source: str, out: Path) -> tuple[str, Schema]:
    """The rows as Parquet; the last column says what was earned, and a row's place keeps equal ones apart."""
    table = pyarrow.csv.read_csv(source)
    columns = {name: table[name].cast(pa.float64()) for name in NUMBERS}
    columns |= {name: pc.utf8_trim_whitespace(table[name]) for name in WORDS}
    label = pc.match_substring(table[table.column_names[-1]], ">50K").cast(pa.int8())
    pq.write_table(pa.table(columns | {"label": label, "at": np.arange(len(table))}), out / "rows.parquet")
    numbers = tuple(Dense(name=n, mean=float(np.mean(columns[n])), std=float(np.std(columns[n]))) for n in NUMBERS)
    words = tuple(Id(name=n, vocabulary=tuple(sorted(set(columns[n].to_pylist())))) for n in WORDS)
    return str(out / "rows.parquet"), Schema(features=(*numbers, *words), time="at")


def run_of(data: Interactions, seed: int, name: str, storage: str) -> Run:
    return Run(
        name=f"{name}-{seed}",
        model=DCNv2(dim=16, layers=3, rank=None, deep=(128, 64), dropout=0.3),
        data=data,
        optim=AdamW(lr=1e-3, weight_decay=1e-2, schedule=Schedule(decay="cosine")),
        sparse_optim=RowWiseAdagrad(lr=5e-3),
        parallel=Parallel(dense="ddp"),
        cluster=Cluster(workers=1),
        global_batch=256,
        duration=Duration(epochs=12),
        evaluation=Evaluation(monitor="log_loss"),
        handoff=Handoff(export=False),
        metrics=(AUC(), LogLoss()),
        seed=seed,
        storage=storage,
    )


def main() -> None:
    asking = parser("bench.census", __doc__)
    asking.add_argument("source", type=Path, help="the CSV")
    asked = asking.parse_args()
    if not asked.source.exists():
        asking.error(f"{asked.source}: no such file")
    found: dict[str, list[dict[str, float]]] = {"mean and std": [], f"PiecewiseLinear {BINS}": [], TREES: []}
    with tempfile.TemporaryDirectory(prefix="rtrain-census-") as folder:
        source, schema = rows_of(str(asked.source), Path(folder))
        for seed in SEEDS:
            plain = Interactions(source=source, schema=schema, split=Random(valid=0.1, test=0.2, seed=seed))
            for name, data in zip(found, (plain, plain.encoded(bins=BINS)), strict=False):
                result = rtrain.train(run_of(data, seed, name.replace(" ", "-"), folder), launcher="inline", quiet=True)
                assert result is not None
                found[name].append(result.values["test"])
            trees = next(one for one in result.values["baselines"] if one["name"] == TREES)
            found[TREES].append(trees["test"])
    for name, values in found.items():
        for metric in ("auc", "log_loss"):
            of = [one[metric] for one in values]
            print(f"{name:40} {metric:9} {statistics.mean(of):.4f} ({min(of):.4f} - {max(of):.4f})")


if __name__ == "__main__":
    main()
