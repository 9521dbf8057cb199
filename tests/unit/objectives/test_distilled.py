"""Distillation by hand, row by row; how a teacher's logits come into a batch; what is refused."""

import math
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from rtrain.data.encode import concat, encode
from rtrain.errors import ConfigError, DataError
from rtrain.models.dcnv2 import DCNv2
from rtrain.models.ensemble import Ensemble
from rtrain.models.mmoe import MMoE
from rtrain.objectives.distilled import Distillation, Distilled
from rtrain.objectives.pointwise import Pointwise
from rtrain.schema import Id, Label, Schema

NAN = float("nan")
SCHEMA = Schema(features=(Id(name="item", rows=5),), teacher="t")
LOGITS = (0.5, -2.0, 3.0, 1.0, 40.0)
LABELS = (1.0, 0.0, 0.0, NAN, NAN)
TEACHER = (-1.5, NAN, 200.0, 0.7, NAN)
WEIGHTS = (0.5, 2.0, 1.0, 3.0, 7.0)


def entropy(z: float, y: float) -> float:
    return y * math.log1p(math.exp(-z)) + (1 - y) * math.log1p(math.exp(z))


def by_hand(z: float, label: float, teacher: float, alpha: float, hot: float) -> float:
    of_label = 0.0 if math.isnan(label) else entropy(z, label)
    of_teacher = 0.0 if math.isnan(teacher) else hot**2 * entropy(z / hot, 1 / (1 + math.exp(-teacher / hot)))
    if math.isnan(label) or math.isnan(teacher):
        return of_label + of_teacher
    return alpha * of_label + (1 - alpha) * of_teacher


@pytest.mark.parametrize(("alpha", "hot"), [(0.3, 2.0), (0.0, 1.0), (1.0, 5.0)])
def test_each_row_by_hand(alpha: float, hot: float) -> None:
    rows = [by_hand(*row, alpha, hot) for row in zip(LOGITS, LABELS, TEACHER, strict=True)]
    by = Distillation(alpha=alpha, temperature=hot)
    logits = torch.tensor(LOGITS, requires_grad=True)
    target = torch.tensor([LABELS, TEACHER]).T
    losses = Distilled(by=by).row_losses(logits, target)
    assert losses.tolist() == pytest.approx(rows, rel=1e-6)
    assert losses[-1] == 0  # as a row that pads
    assert float(Distilled(by=by).loss(logits, target)) == pytest.approx(sum(rows), rel=1e-6)
    weighted = torch.column_stack([target, torch.tensor(WEIGHTS)])
    total = Distilled(by=by, weighted=True).loss(logits, weighted)
    assert float(total) == pytest.approx(sum(w * x for w, x in zip(WEIGHTS, rows, strict=True)), rel=1e-6)
    total.backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all() and logits.grad[-1] == 0


def test_a_student_of_labels_alone_is_the_plain_objective() -> None:
    logits, labels = torch.tensor(LOGITS[:3]), torch.tensor(LABELS[:3])
    target = torch.stack([labels, torch.full((3,), NAN)], dim=1)
    found = Distilled(by=Distillation(alpha=0.2)).row_losses(logits, target)
    assert torch.equal(found, Pointwise().row_losses(logits, labels))


def table() -> pa.Table:
    return pa.table({"item": [1, 2, 3], "label": [1, 0, 1], "t": pa.array([0.5, None, -2.0])})


@pytest.mark.parametrize("weight", ["", "w"])
def test_a_batch_has_the_logits_between_label_and_weight(weight: str) -> None:
    schema = replace(SCHEMA, weight=weight)
    rows = table().append_column("w", [[1.0, 2.0, 3.0]])
    part = encode(rows, schema, label=True, where="t", first_row=0)
    wanted = torch.tensor([[1.0, 0.5, 1.0], [0.0, NAN, 2.0], [1.0, -2.0, 3.0]])[:, : 3 if weight else 2]
    batch = concat([part.select(np.array([0, 1])), part.select(np.array([2]))]).batch(global_rows=3)
    assert torch.equal(batch.target.nan_to_num(9.0), wanted.nan_to_num(9.0))
    padded = batch.padded(5)
    assert padded.target.shape == (5, wanted.shape[1]) and padded.target[3:, :2].isnan().all()
    moved = batch.to(torch.device("meta"))
    assert moved.teacher is not None and moved.teacher.is_meta


def test_a_request_has_no_teacher() -> None:
    assert SCHEMA.arrow(label=False).names == ["item"]
    assert encode(table().select(["item"]), SCHEMA, label=False, where="t", first_row=0).teacher is None


def test_a_column_that_is_missing_or_all_null() -> None:
    with pytest.raises(DataError, match="column 't' is missing"):
        encode(table().drop_columns(["t"]), SCHEMA, label=True, where="t", first_row=0)
    nulls = table().set_column(2, "t", pa.nulls(3))
    found = encode(nulls, SCHEMA, label=True, where="t", first_row=0).teacher
    assert found is not None and np.isnan(found).all()


@pytest.mark.parametrize(("value", "got"), [(NAN, "nan"), (float("inf"), "inf"), (-1e39, "-1e+39")])
def test_a_logit_that_cannot_be_used_is_named_with_its_row(value: float, got: str) -> None:
    given = table().set_column(2, "t", pa.array([1.0, None, value], pa.float64(), from_pandas=False))
    said = re.escape(f"t: teacher's logit 't' is {got} at row 12; it must be a finite number, or null")
    with pytest.raises(DataError, match=f"^{said}$"):
        encode(given, SCHEMA, label=True, where="t", first_row=10)


def test_what_is_refused() -> None:
    for given, said in (({"alpha": 1.5}, "alpha: must be in [0, 1], got 1.5"), ({"temperature": 0.0}, "temperature: ")):
        with pytest.raises(ConfigError, match=re.escape(f"model.distillation.{said}")):
            Distillation(**given)
    with pytest.raises(ConfigError, match="the name 'label' is used twice"):
        replace(SCHEMA, teacher="label")
    for more in ({"more_labels": (Label(name="b"),)}, {"label": Label(kind="number")}):
        with pytest.raises(ConfigError, match=re.escape("schema.teacher: its logits are of one label of 0 or 1")):
            replace(SCHEMA, **more)
    student = DCNv2(distillation=Distillation())
    with pytest.raises(ConfigError) as caught:
        student.blueprint(replace(SCHEMA, teacher=""))
    assert str(caught.value) == (
        "model DCNv2: it learns from a teacher's logits, but the schema has none. Name their column in schema.teacher"
    )
    with pytest.raises(ConfigError) as caught:
        DCNv2().blueprint(SCHEMA)
    assert str(caught.value) == (
        "model DCNv2: its objective does not read a teacher's logits (schema.teacher). Give it "
        "distillation=Distillation(), or leave schema.teacher out"
    )
    with pytest.raises(ConfigError, match="^model MMoE: it learns from a teacher's logits, but the schema has none"):
        MMoE(distillation=Distillation()).blueprint(Schema(features=SCHEMA.features, more_labels=(Label(name="b"),)))


def test_an_ensemble_is_distilled_as_its_members_are() -> None:
    student = DCNv2(distillation=Distillation(alpha=0.1))
    both = Ensemble(models=(student, replace(student, layers=1)))
    assert both.blueprint(SCHEMA).objective == Distilled(by=Distillation(alpha=0.1))
    with pytest.raises(ConfigError, match=r"^model.models.1: DCNv2 and DCNv2 are trained towards other objectives"):
        Ensemble(models=(student, DCNv2(distillation=Distillation(alpha=0.2)))).blueprint(SCHEMA)
