"""What a split's metrics are given of each row: the model's own logits, and whom the row is ranked for."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.special import expit, log_expit

from rtrain.mesh import Mesh, lay_out
from rtrain.metrics import AUC, LogLoss
from rtrain.run import Run
from rtrain.training.agreement import open_data
from rtrain.training.replica import Replica
from rtrain.training.scoring import measure, scan
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
        list(replica.model.tower.parameters())[-1].add_(25.0)
    data = open_data(tiny)
    batches = list(scan(tiny, data, "valid", mesh, world))
    with torch.no_grad():
        logits = np.concatenate([replica.logits(batch).double().numpy() for batch in batches])
    labels = np.concatenate([batch.label.numpy() for batch in batches])
    assert logits.min() > 20 and 0 < labels.mean() < 1

    found = measure(replica, iter(batches), (AUC(), LogLoss()))
    assert found["log_loss"] == pytest.approx(-log_expit(np.where(labels == 1, logits, -logits)).mean(), abs=1e-9)
    won = np.sign(logits[labels == 1][:, None] - logits[labels == 0][None, :])
    assert found["auc"] == pytest.approx((won.mean() + 1) / 2, abs=1e-12)
    said = torch.cat([replica.predict(batch) for batch in batches]).numpy()
    np.testing.assert_allclose(said, expit(logits), rtol=1e-15)
    assert len(set(said)) > len(said) / 2
