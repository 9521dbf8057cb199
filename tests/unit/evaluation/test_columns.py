"""Metrics by the values of a column, and in groups of columns that are no features: against the rows taken by hand."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rtrain
from recipes.bpr_movielens import debug as bpr
from rtrain.data.coded import coded
from rtrain.data.interactions import Dataset
from rtrain.data.means import of_means
from rtrain.errors import ConfigError
from rtrain.evaluation.baseline import of_baselines
from rtrain.evaluation.columns import Columns, slices_of
from rtrain.evaluation.scoring import examine, measure, scan
from rtrain.mesh import lay_out
from rtrain.metrics import AUC, GAUC, NDCG, LogLoss
from rtrain.metrics.state import Metric, Scored
from rtrain.run import Run
from rtrain.training.agreement import open_data
from rtrain.training.replica import Replica
from rtrain.training.world import World, join, leave

BY = ("user_id", "timestamp")
METRICS: tuple[Metric, ...] = (AUC(), LogLoss(), GAUC(), GAUC(by=BY), NDCG(k=5, by=BY))


@pytest.fixture
def world() -> Iterator[World]:
    yield join(gpu=False, timeout_s=60)
    leave()


@pytest.fixture
def run(tiny: Run) -> Run:
    return rtrain.override(tiny, {"metrics": METRICS, "evaluation.slices": ("gender", "hour")})


def kept(metric: Metric, scored: Scored, mask: Any) -> float:
    return metric.value(metric.partial(Scored(scored.logits[mask], scored.labels[mask], scored.groups[mask])))


def test_slices_and_groups_of_raw_columns_are_those_of_the_rows_themselves(run: Run, world: World) -> None:
    mesh, data = lay_out(run.parallel, world.size), open_data(run)
    assert isinstance(data, Dataset)
    replica = Replica(run, mesh, world, stored=None, training=False)
    columns = Columns(data, "test")
    batches = list(scan(run, data, "test", mesh, world.rank))
    found = examine(replica, batches, METRICS, columns, grouped=True, slices=run.evaluation.slices)
    assert found.values == measure(replica, batches, METRICS, columns)
    assert list(found.values) == ["auc", "log_loss", "gauc", "gauc[user_id,timestamp]", "ndcg@5[user_id,timestamp]"]

    table = data.raw("test", 0, data.rows("test"))
    scored = replica.score(batches)[0][""]
    hours = set(table["hour"].to_pylist())
    genders = np.array(table["gender"].to_pylist())
    for gender in ("F", "M"):
        mask = genders == gender
        for metric in (AUC(), LogLoss(), GAUC()):
            assert found.slices[f"{metric.name}[gender={gender}]"] == pytest.approx(
                kept(metric, scored, mask), abs=1e-12
            )
    assert len([name for name in found.slices if name.startswith("log_loss[hour=")]) == min(21, len(hours))

    pairs = list(zip(*(table[name].to_pylist() for name in BY), strict=True))
    number = {pair: i for i, pair in enumerate(sorted(set(pairs)))}
    by_pair = replace(scored, groups=np.array([number[pair] for pair in pairs]))
    everything = np.ones(len(pairs), bool)
    assert 1 < len(number) < len(pairs)
    for metric, name in ((GAUC(), "gauc"), (NDCG(k=5), "ndcg@5")):
        expected = kept(metric, by_pair, everything)
        assert found.values[f"{name}[user_id,timestamp]"] == pytest.approx(expected, abs=1e-12)
        of_men = kept(metric, by_pair, genders == "M")
        assert found.slices[f"{name}[user_id,timestamp][gender=M]"] == pytest.approx(of_men, abs=1e-12)
    assert found.values["gauc[user_id,timestamp]"] != found.values["gauc"]

    means = of_means(data, "test", by=("user_id", "item_id"))
    assert isinstance(means, Scored)
    first, *_ = of_baselines(run, data, {})
    assert first["test"]["auc[gender=M]"] == pytest.approx(kept(AUC(), means, genders == "M"))
    assert first["valid"].keys() == found.values.keys(), "the curve's split has no slices"


class Held:
    """A split of one column."""

    def __init__(self, values: list[Any]):
        self.table = pa.table({"c": values})

    def coded(self, split: str, names: tuple[str, ...]) -> Any:
        return coded(self.table.select(list(names)))

    def numbers(self, split: str) -> range:
        return range(len(self.table))


def test_the_rarest_values_are_one_slice_and_no_two_slices_share_a_name() -> None:
    values = [str(v) for v in range(30) for _ in range(v + 1)] + ["other"] * 40 + [None] * 50
    columns = Columns(Held(values), "test")  # type: ignore[arg-type]
    found = slices_of(("c",), columns)
    assert [one.name for one in found[:3]] == ["[c=(null)]", "[c='other']", "[c=29]"]
    assert len(found) == 21 and found[-1].name == "[c=other]" and len({one.name for one in found}) == 21
    rows = Scored(np.zeros(len(values)), np.zeros(len(values)), np.zeros(len(values), np.int64), np.arange(len(values)))
    sizes = [len(one.of(rows, columns).labels) for one in found]
    assert sum(sizes) == len(values) and sizes[-1] == sum(v + 1 for v in range(12))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation.slices": ("gendr",)}, "evaluation.slices: Interactions has no column 'gendr' with one value"),
        ({"evaluation.slices": ("genres",)}, "evaluation.slices: Interactions has no column 'genres' with one value"),
        ({"evaluation.slices": ("gender", "gender")}, "evaluation.slices: it names a column twice"),
        ({"metrics": (AUC(), GAUC(by=("timestmp",)))}, "metrics: gauc[timestmp]: the data have no column 'timestmp'"),
        ({"metrics": (AUC(), GAUC(by=("genres",)))}, "metrics: gauc[genres]: column 'genres' is list<"),
    ],
)  # fmt: skip
def test_columns_that_are_not_there_are_one_line(tiny: Run, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        open_data(rtrain.override(tiny, changes))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_positive_interactions_have_no_columns_of_their_own() -> None:
    with pytest.raises(ConfigError, match=r"metrics: ndcg@10\[hour\] group by columns, of which Pairs has none"):
        rtrain.override(bpr(), {"metrics": (NDCG(k=10, by=("hour",)), NDCG(k=10)), "evaluation.monitor": "ndcg@10"})
    with pytest.raises(ConfigError, match=r"evaluation.slices: Pairs has no column 'user'.*Known: history"):
        rtrain.override(bpr(), {"evaluation.slices": ("user",)})


def test_a_group_metric_of_its_own_columns_needs_no_group_in_the_schema(tiny: Run, tmp_path: Path) -> None:
    schema = replace(tiny.data.schema, group="")  # type: ignore[attr-defined]
    run = rtrain.override(tiny, {"data.schema": schema, "metrics": (AUC(), GAUC(by=BY))})
    assert pq.read_table(tmp_path / "rows.parquet").column_names.count("timestamp") == 1
    assert "timestamp" not in [f.name for f in schema.features]
    assert [metric.name for metric in open_data(run) and run.metrics] == ["auc", "gauc[user_id,timestamp]"]
