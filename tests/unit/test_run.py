"""A run takes what keeps to the protocols, also from a user's own file, and says what does not."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from recipes import bpr_movielens, dlrm_movielens
from rtrain import BPR, InBatchSoftmax, config
from rtrain.data.interactions import Interactions
from rtrain.errors import ConfigError
from rtrain.metrics.state import Metric, Partial, Scored, evaluate
from rtrain.run import Run


@dataclass(frozen=True, kw_only=True)
class Positives(Metric):
    """A metric of one's own: the number of rows of label 1."""

    by_group: ClassVar[bool] = False
    name: ClassVar[str] = "positives"
    higher_is_better: ClassVar[bool] = True

    def partial(self, scored: Scored) -> Partial:
        return Partial(sums={"positives": np.array([scored.labels.sum()])})

    def value(self, partial: Partial) -> float:
        return float(partial.sums["positives"][0])


@dataclass(frozen=True, kw_only=True)
class Grouped(Positives):
    by_group: ClassVar[bool] = True
    name: ClassVar[str] = "grouped"


@dataclass(frozen=True, kw_only=True)
class OwnRows(Interactions):
    """Data of one's own."""

    note: str = "mine"


@pytest.fixture(scope="module")
def run() -> Run:
    return dlrm_movielens.debug()


def test_a_metric_of_ones_own_steers_a_run(run: Run) -> None:
    own = replace(run, metrics=(Positives(),), evaluation=replace(run.evaluation, monitor="positives"))
    assert own.monitored == Positives()
    scored = Scored(logits=np.zeros(3), labels=np.array([1.0, 0.0, 1.0]), groups=np.zeros(3, np.int64))
    state = Positives().partial(scored)
    assert evaluate(own.metrics, [state + state]) == {"positives": 4.0}


def test_a_metric_of_ones_own_that_ranks_wants_a_group(run: Run) -> None:
    without = replace(run.data, schema=replace(run.data.schema, group=""))  # type: ignore[arg-type,attr-defined,type-var]
    with pytest.raises(ConfigError, match=r"metrics: grouped rank rows within a group"):
        replace(run, data=without, metrics=(Grouped(),), evaluation=replace(run.evaluation, monitor="grouped"))


def test_data_of_ones_own_train_a_model_that_reads_their_batches(run: Run) -> None:
    own: Any = run.data
    data = OwnRows(source=own.source, schema=own.schema)
    assert replace(run, data=data).data == data
    with pytest.raises(ConfigError, match="MF is trained on Pairs or Histories, got OwnRows"):
        replace(bpr_movielens.debug(), data=data)


@pytest.mark.parametrize(
    ("field", "protocol", "value"),
    [("model", "Model", BPR()), ("data", "Data", "ml-100k"), ("metrics", "Metric", (3,))],
)
def test_what_keeps_to_no_protocol_is_refused(run: Run, field: str, protocol: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{field}: expected .*{protocol}"):
        replace(run, **{field: value})


def test_changes_that_go_together_are_checked_together() -> None:
    """An objective that draws nothing, and no negatives: neither is legal without the other."""
    run = bpr_movielens.debug()
    with pytest.raises(ConfigError, match=r"data.negatives.count"):
        config.override(run, {"model.objective": InBatchSoftmax()})
    changed = config.override(run, {"model.objective": InBatchSoftmax(), "data.negatives.count": 0})
    assert (changed.model.objective, changed.data.negatives.count) == (InBatchSoftmax(), 0)  # type: ignore[attr-defined]


def test_a_child_that_is_replaced_takes_what_is_set_in_it_afterwards_and_not_before() -> None:
    run = bpr_movielens.debug()
    softmax = InBatchSoftmax(temperature=0.5)
    changes = {"model.objective.temperature": 9.0, "model.objective": softmax, "model.objective.correction": False}
    objective = config.override(run, {**changes, "data.negatives.count": 0}).model.objective  # type: ignore[attr-defined]
    assert objective == InBatchSoftmax(temperature=0.5, correction=False)
