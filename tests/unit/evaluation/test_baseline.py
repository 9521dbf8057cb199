"""What a model is held against: learned from training rows alone, measured on the model's rows, with intervals."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from rtrain.data import Interactions, boosted
from rtrain.evaluation.baseline import in_random_order, intervals
from rtrain.evaluation.columns import Columns
from rtrain.evaluation.rows import TestRows
from rtrain.metrics import AUC, GAUC, NDCG, RMSE, LogLoss
from rtrain.metrics.baseline import DAMPING
from rtrain.metrics.curves import auc
from rtrain.metrics.state import Scored, Valued
from rtrain.schema import Dense, Id, IdList, Label, Schema

ROWS, USERS, ITEMS = 4000, 40, 300
SCHEMA = Schema(
    features=(
        Id(name="user", entity="user", rows=USERS),
        Id(name="item", entity="item", rows=ITEMS),
        Id(name="colour", vocabulary=("red", "green", "blue")),
        Dense(name="x", missing=0.0),
        IdList(name="tags", rows=9),
    ),
    group="user",
    time="time",
)
TWO, ONE, BOOSTED = "user and item means alone", "item means alone", "gradient boosting on the same features"


def table(seed: int = 0) -> pa.Table:
    """Labels of a colour and a number together, of which means of users and items know nothing, and of the item."""
    draw = np.random.default_rng(seed)
    colour, x, item = draw.integers(0, 3, ROWS), draw.normal(size=ROWS), draw.integers(0, ITEMS, ROWS)
    logit = np.where(colour == 0, 2 * x, np.where(colour == 1, -2 * x, 0)) + (item % 2 - 0.5)
    words = np.array(["red", "green", "blue", "grey"])
    return pa.table(
        {
            "user": draw.integers(0, USERS, ROWS),
            "item": item,
            "colour": words[np.where(draw.random(ROWS) < 0.05, 3, colour)],
            "x": pa.array(x, mask=draw.random(ROWS) < 0.05),
            "tags": pa.array([[1] * n for n in draw.integers(0, 4, ROWS).tolist()], pa.list_(pa.int64())),
            "time": np.arange(ROWS),
            "label": (draw.random(ROWS) < 1 / (1 + np.exp(-logit))).astype(np.float64),
        }
    )


Open = Callable[..., Any]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    def opened(rows: pa.Table | None = None, schema: Schema = SCHEMA) -> Any:
        pq.write_table(table() if rows is None else rows, tmp_path / "rows.parquet")
        return Interactions(source=str(tmp_path / "rows.parquet"), schema=schema).open()

    return opened


def said(data: Any, split: Any = "test", rows: int = 100_000) -> dict[str, Any]:
    return {of.name: of.says(split) for of in data.baselines((AUC(),), rows)}


def test_means_are_of_the_training_rows(opened: Open) -> None:
    data = opened()
    found = said(data, "valid")
    assert list(found) == [TWO, ONE, BOOSTED]
    known, asked = (data.raw(split, 0, data.rows(split)) for split in ("train", "valid"))
    labels, mean = known["label"].to_numpy(), known["label"].to_numpy().mean()
    deviation = {}
    for column in ("user", "item"):
        keys = known[column].to_numpy()
        for key in np.unique(asked[column].to_numpy()):
            mine = labels[keys == key] - mean
            deviation[column, int(key)] = mine.sum() / (len(mine) + DAMPING)
    of_item = np.array([deviation["item", key] for key in asked["item"].to_pylist()])
    of_user = np.array([deviation["user", key] for key in asked["user"].to_pylist()])
    np.testing.assert_allclose(found[ONE].probabilities, mean + of_item, atol=1e-12)
    np.testing.assert_allclose(found[TWO].probabilities, mean + of_item + of_user, atol=1e-12)
    for scored in found.values():
        assert scored.labels.tolist() == asked["label"].to_pylist()
        assert scored.rows.tolist() == list(data.numbers("valid"))


def test_no_baseline_has_seen_a_label_of_another_split(opened: Open) -> None:
    first = opened()
    before, train = said(first), first.rows("train")
    rows = table()
    other = np.where(np.arange(ROWS) < train, rows["label"].to_numpy(), 1 - rows["label"].to_numpy())
    after = said(opened(rows.set_column(rows.column_names.index("label"), "label", pa.array(other))))
    for name in (TWO, ONE, BOOSTED):
        assert before[name].logits.tolist() == after[name].logits.tolist()
        assert (before[name].labels == 1 - after[name].labels).all()


def test_boosting_is_scikit_learns_on_the_same_columns_and_learns_what_means_cannot(opened: Open) -> None:
    data = opened()
    found = said(data)
    known, asked = (data.raw(split, 0, data.rows(split)) for split in ("train", "test"))

    def inputs(rows: pa.Table) -> Any:
        words = {"red": 0.0, "green": 1.0, "blue": 2.0}
        columns = [
            rows["user"].to_pylist(), rows["item"].to_pylist(),
            [words.get(word, np.nan) for word in rows["colour"].to_pylist()],
            [np.nan if x is None else x for x in rows["x"].to_pylist()], [len(t) for t in rows["tags"].to_pylist()],
        ]  # fmt: skip
        return np.array(columns, np.float64).T

    trees = HistGradientBoostingClassifier(categorical_features=[True, False, True, False, False], random_state=0)
    expected = trees.fit(inputs(known), known["label"].to_numpy()).predict_proba(inputs(asked))[:, 1]
    np.testing.assert_allclose(found[BOOSTED].probabilities, expected, atol=1e-12)
    of = {name: auc(scored.logits, scored.labels) for name, scored in found.items()}
    # Three standard errors of an AUC of 400 rows are below 0.09.
    assert of[BOOSTED] > of[TWO] + 0.09


def test_boosting_takes_a_sample_and_is_left_out_where_that_is_said(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = opened()
    few, every = (said(data, rows=rows)[BOOSTED].logits for rows in (500, 5000))
    assert (few != every).any() and few.tolist() == said(data, rows=500)[BOOSTED].logits.tolist()
    assert list(said(data, rows=0)) == [TWO, ONE] and not data.remarks(0) and not data.remarks(500)
    monkeypatch.setattr(boosted, "MOST_ROWS", ROWS - 1)
    assert list(said(data)) == [TWO, ONE] and f"the data have {ROWS:,} rows" in data.remarks(500)[0]
    monkeypatch.setattr(boosted, "MOST_ROWS", ROWS)
    monkeypatch.setattr(boosted, "find_spec", lambda name: None)
    assert list(said(data)) == [TWO, ONE] and "scikit-learn is not installed" in data.remarks(500)[0]


def test_numbers_no_group_and_one_class(opened: Open) -> None:
    number = replace(SCHEMA, label=Label(kind="number"))
    found = said(opened(schema=number))
    assert all(isinstance(scored, Valued) for scored in found.values()) and list(found) == [TWO, ONE, BOOSTED]
    assert RMSE().value(RMSE().partial(found[BOOSTED])) < RMSE().value(RMSE().partial(found[TWO]))
    assert list(said(opened(schema=replace(SCHEMA, group="")))) == [BOOSTED]
    rows = table()
    ones = rows.set_column(rows.column_names.index("label"), "label", pa.array(np.ones(ROWS)))
    assert said(opened(ones))[BOOSTED] is None


def test_random_order_is_what_equal_scores_expect(opened: Open) -> None:
    data = opened()
    scored = said(data)[TWO]
    columns = Columns(data, "test")
    found = in_random_order(scored, (NDCG(k=5), GAUC()), columns)
    equal = replace(scored, logits=np.zeros(len(scored.labels)))
    for metric in (NDCG(k=5), GAUC()):
        draws = [in_random_order(scored, (metric,), columns, seed=seed)[metric.name] for seed in range(1, 9)]
        # Equal scores share their places' gains, which is the expectation; five deviations of a mean of 100 draws.
        assert abs(found[metric.name] - metric.value(metric.partial(equal))) < 5 * np.std(draws)
    assert found == in_random_order(scored, (NDCG(k=5), GAUC()), columns), "by a seed"


def rows_of(scored: Scored, first: int) -> TestRows:
    assert scored.rows is not None
    return TestRows(replace(scored, rows=scored.rows - first), scored.groups, True, 1.0)


def test_intervals_are_of_the_models_value_less_the_baselines(opened: Open) -> None:
    data = opened()
    first, found = data.numbers("test").start, said(data)
    metrics = (AUC(), LogLoss(), GAUC(by=("colour",)), NDCG(k=5))
    model = {"": rows_of(found[BOOSTED], first)}
    of = intervals(model, found[TWO], metrics, first)
    assert set(of) == {"auc", "log_loss", "ndcg@5"}, "none of groups of the metric's own"
    for metric in (AUC(), LogLoss(), NDCG(k=5)):
        ours, theirs = (metric.value(metric.partial(found[name])) for name in (BOOSTED, TWO))
        assert of[metric.name]["low"] < ours - theirs < of[metric.name]["high"]
    assert of["auc"]["low"] > 0 > of["log_loss"]["high"] and of["auc"]["excludes_0"]
    order = np.random.default_rng(0).permutation(len(found[TWO].labels))
    mixed = Scored(*(getattr(found[TWO], name)[order] for name in ("logits", "labels", "groups", "rows")))
    assert intervals(model, mixed, metrics, first) == of, "whatever the order of its rows"
    same = intervals(model, found[BOOSTED], metrics, first)["auc"]
    assert same == {"low": 0.0, "high": 0.0, "excludes_0": False}
    assert intervals({}, found[TWO], metrics, first) == {}
