"""Numbers as they are, by quantiles and by bins, beside boosted trees: `python -m bench.encodings [SEED ...]`.

40,000 rows of eight numbers and one category. The planted logit has steps, waves and a product of two steps; half of
the numbers are log-normal. As the probability is planted, the best log loss and AUC that can be reached are known. Each
seed draws its own rows and weights, and its best epoch is taken by the validation rows, as the trees' best iteration.
scikit-learn is asked for where it is installed.
"""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import rtrain
from bench.asked import parser
from rtrain import (
    DLRM,
    AdamW,
    Dense,
    Duration,
    Evaluation,
    Handoff,
    Id,
    Interactions,
    Parallel,
    PiecewiseLinear,
    Quantiles,
    RowWiseAdagrad,
    Run,
    Schema,
)
from rtrain.metrics import AUC, LogLoss
from rtrain.metrics.state import Scored, evaluate

ROWS, NUMBERS, SEEDS = 40_000, 8, (0, 1, 2)
METRICS = (LogLoss(), AUC())
NAMES = tuple(f"x{n}" for n in range(NUMBERS))


def plant(path: Path, seed: int) -> pa.Table:
    draw = np.random.default_rng(seed)
    z = draw.normal(size=(ROWS, NUMBERS))
    kind = draw.integers(0, 20, ROWS)
    logit = (
        1.2 * np.sign(np.sin(6 * z[:, 0])) + 1.2 * np.sin(9 * z[:, 1]) + 0.8 * (z[:, 2] > 0.7) - 0.8 * (z[:, 3] < -0.2)
    )
    logit += 1.0 * np.sin(7 * z[:, 4]) + 1.2 * np.sign(z[:, 5] - 0.3) * np.sign(z[:, 6] + 0.4) + 0.3 * z[:, 7]
    logit += 0.5 * np.linspace(-1, 1, 20)[kind] - 0.5
    raw = np.where(np.arange(NUMBERS) % 2, np.exp(1.5 * z), 10 * z + 40)
    planted = 1 / (1 + np.exp(-logit))
    columns = {name: raw[:, n] for n, name in enumerate(NAMES)}
    columns |= {"kind": kind, "planted": planted, "label": (draw.random(ROWS) < planted).astype(np.int8)}
    table = pa.table(columns | {"at": np.arange(ROWS)})
    pq.write_table(table, path)
    return table


def run_of(data: Interactions, folder: str, name: str, seed: int) -> Run:
    return Run(
        name=name,
        model=DLRM(dim=16, bottom=(128, 64), top=(64, 32)),
        data=data,
        optim=AdamW(lr=5e-3),
        sparse_optim=RowWiseAdagrad(lr=5e-2),
        parallel=Parallel(dense="ddp"),
        global_batch=1024,
        duration=Duration(epochs=12),
        evaluation=Evaluation(monitor="log_loss"),
        handoff=Handoff(export=False),
        metrics=METRICS,
        seed=seed,
        storage=folder,
    )


def scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    scored = Scored.of_probabilities(probabilities, labels.astype(np.float64), np.zeros(len(labels), np.int64))
    return evaluate(METRICS, [metric.partial(scored) for metric in METRICS])


def trees(parts: dict[str, pa.Table], seed: int) -> dict[str, float]:
    from sklearn.ensemble import HistGradientBoostingClassifier

    x = {s: np.column_stack([t[name].to_numpy() for name in (*NAMES, "kind")]) for s, t in parts.items()}
    y = {s: t["label"].to_numpy() for s, t in parts.items()}
    best = None
    for rate, leaves in ((0.1, 31), (0.05, 31), (0.05, 63)):
        model = HistGradientBoostingClassifier(
            learning_rate=rate, max_leaf_nodes=leaves, max_iter=1000, early_stopping=True, random_state=seed
        ).fit(x["train"], y["train"], X_val=x["valid"], y_val=y["valid"])
        valid, test = (scores(model.predict_proba(x[s])[:, 1], y[s]) for s in ("valid", "test"))
        if best is None or valid["log_loss"] < best[0]:
            best = (valid["log_loss"], test)
    assert best is not None
    return best[1]


def one(seed: int) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        train = plant(path, seed).slice(0, int(0.8 * ROWS))
        stats = {name: (float(np.mean(train[name])), float(np.std(train[name]))) for name in NAMES}
        features = (*(Dense(name=n, mean=m, std=s) for n, (m, s) in stats.items()), Id(name="kind", rows=20))
        plain = Interactions(source=str(path), schema=Schema(features=features, time="at"))
        arms = {
            "mean and std": plain,
            "Quantiles 64": plain.encoded(Quantiles, bins=64),
            "PiecewiseLinear 16": plain.encoded(PiecewiseLinear, bins=16),
            "PiecewiseLinear 64": plain.encoded(PiecewiseLinear, bins=64),
        }
        found = {}
        for name, data in arms.items():
            run = run_of(data, folder, name.replace(" ", "-"), seed)
            result = rtrain.train(run, launcher="inline", quiet=True)
            assert result is not None
            found[name] = result.metrics
            print(f"seed {seed}: {name} {found[name]}", flush=True)
        opened = plain.open()
        parts = {s: opened.raw(s, 0, opened.rows(s)) for s in ("train", "valid", "test")}
        try:
            found["boosted trees"] = trees(parts, seed)
            print(f"seed {seed}: boosted trees {found['boosted trees']}", flush=True)
        except ImportError:
            print("scikit-learn is not installed: no boosted trees")
        found["planted"] = scores(parts["test"]["planted"].to_numpy(), parts["test"]["label"].to_numpy())
        return found


def main() -> None:
    asking = parser("bench.encodings", __doc__)
    asking.add_argument("seeds", nargs="*", type=int, metavar="SEED", help="left out: 0, 1 and 2")
    found = [one(seed) for seed in asking.parse_args().seeds or SEEDS]
    for name in found[0]:
        for metric in ("log_loss", "auc"):
            values = [of[name][metric] for of in found]
            print(f"{name:20} {metric:9} {np.mean(values):.4f} ({min(values):.4f} - {max(values):.4f})")


if __name__ == "__main__":
    main()
