"""What a split's metrics are given of each row: the model's own logits, and whom the row is ranked for."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.special import expit, log_expit

import rtrain
from rtrain.data.interactions import Dataset, Interactions
from rtrain.data.means import numbered
from rtrain.evaluation.scoring import measure, scan
from rtrain.mesh import Mesh, lay_out
from rtrain.metrics import AUC, GAUC, NDCG, LogLoss
from rtrain.metrics.state import Metric, Scored, evaluate
from rtrain.run import Run
from rtrain.schema import Id
from rtrain.training.agreement import open_data
from rtrain.training.replica import Replica
from rtrain.training.world import World, join, leave


@pytest.fixture
def world() -> Iterator[World]:
    yield join(gpu=False, timeout_s=60)
    leave()


@pytest.fixture
def mesh(tiny: Run, world: World) -> Mesh:
    return lay_out(tiny.parallel, world.size)


def test_confident_rows_are_scored_by_their_logits(tiny: Run, world: World, mesh: Mesh) -> None:
    replica = Replica(tiny, mesh, world, stored=None, training=False)
    with torch.no_grad():  # every row's probability is 1 in float32
        list(replica.modules.parameters())[-1].add_(25.0)
    data = open_data(tiny)
    batches = list(scan(tiny, data, "valid", mesh, world.rank))
    with torch.no_grad():
        logits = np.concatenate([replica.outputs(batch).double().numpy() for batch in batches])
    labels = np.concatenate([batch.label.numpy() for batch in batches])
    assert logits.min() > 20 and 0 < labels.mean() < 1

    found = measure(replica, iter(batches), (AUC(), LogLoss()))
    assert found["log_loss"] == pytest.approx(-log_expit(np.where(labels == 1, logits, -logits)).mean(), abs=1e-9)
    won = np.sign(logits[labels == 1][:, None] - logits[labels == 0][None, :])
    assert found["auc"] == pytest.approx((won.mean() + 1) / 2, abs=1e-12)
    said = torch.cat([replica.predict(batch) for batch in batches]).numpy()
    np.testing.assert_allclose(said, expit(logits), rtol=1e-15)
    assert len(set(said)) > len(said) / 2


def test_users_that_the_vocabulary_lacks_are_ranked_each_for_themselves(
    tiny: Run, world: World, mesh: Mesh, tmp_path: Path
) -> None:
    rows = pq.read_table(tmp_path / "rows.parquet")
    names = pa.array([f"u{user}" for user in rows["user_id"].to_pylist()])
    pq.write_table(rows.set_column(rows.column_names.index("user_id"), "user_id", names), tmp_path / "named.parquet")
    known = tuple(sorted(set(names.to_pylist())))[::4]
    assert isinstance(tiny.data, Interactions)
    features = [f for f in tiny.data.schema.features if f.name != "user_id"]
    schema = replace(tiny.data.schema, features=(Id(name="user_id", entity="user", vocabulary=known), *features))
    source = str(tmp_path / "named.parquet")
    run = rtrain.override(tiny, {"data": Interactions(source=source, schema=schema)})

    replica = Replica(run, mesh, world, stored=None, training=False)
    data = open_data(run)
    assert isinstance(data, Dataset)
    batches = list(scan(run, data, "test", mesh, world.rank))
    metrics: tuple[Metric, ...] = (GAUC(), NDCG(k=5))
    found = measure(replica, iter(batches), metrics)

    users = numbered(data.raw("test", 0, data.rows("test"))["user_id"])  # as the baseline groups them
    strangers = set(names.to_pylist()[-len(users) :]) - set(known)
    assert len(strangers) > 2
    logits = torch.cat([replica.outputs(batch) for batch in batches]).double().numpy()
    labels = torch.cat([batch.label for batch in batches]).double().numpy()
    scored = Scored(logits, labels, users)
    expected = evaluate(metrics, [metric.partial(scored) for metric in metrics])
    assert found == pytest.approx(expected, abs=1e-12)
