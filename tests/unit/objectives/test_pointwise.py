"""Losses of rows by hand: cross-entropy and squared error, with weights and without."""

import math

import pytest
import torch

from rtrain.objectives.pointwise import Pointwise, SquaredError, pointwise
from rtrain.schema import Label, Schema

OUTPUTS, LABELS, WEIGHTS = (0.5, -2.0, 3.0), (1.0, 0.0, 0.0), (0.5, 0.0, 2.0)
NAN = float("nan")


def entropy(z: float, y: float) -> float:
    p = 1 / (1 + math.exp(-z))
    return -math.log(p if y else 1 - p)


def square(z: float, y: float) -> float:
    return (z - y) ** 2


@pytest.mark.parametrize(("objective", "by_hand"), [(Pointwise, entropy), (SquaredError, square)])
def test_a_loss_is_the_sum_over_rows_of_weight_times_loss(objective: type[Pointwise], by_hand: object) -> None:
    assert callable(by_hand)
    rows = [by_hand(z, y) for z, y in zip(OUTPUTS, LABELS, strict=True)]
    outputs, labels, weights = (torch.tensor(x) for x in (OUTPUTS, LABELS, WEIGHTS))
    assert float(objective().loss(outputs, labels)) == pytest.approx(sum(rows), rel=1e-6)
    target = torch.stack([labels, weights], dim=1)
    weighted = float(objective(weighted=True).loss(outputs, target))
    assert weighted == pytest.approx(sum(w * x for w, x in zip(WEIGHTS, rows, strict=True)), rel=1e-6)


@pytest.mark.parametrize(("objective", "by_hand"), [(Pointwise, entropy), (SquaredError, square)])
def test_of_several_labels_one_that_is_not_there_adds_nothing(objective: type[Pointwise], by_hand: object) -> None:
    assert callable(by_hand)
    outputs = torch.tensor([[1.0, 2.0], [0.3, -0.4]])
    target = torch.tensor([[1.0, NAN, 3.0], [0.0, 1.0, 0.25]])
    made = objective((1.0, 4.0), ("", "b_"), weighted=True)
    wanted = 3 * by_hand(1.0, 1.0) + 0.25 * (by_hand(0.3, 0.0) + 4 * by_hand(-0.4, 1.0))
    assert float(made.loss(outputs, target)) == pytest.approx(wanted, rel=1e-6)


def test_the_link_of_a_number_is_the_number_itself() -> None:
    assert SquaredError.link(torch.tensor([-3.5, 900.0])).tolist() == [-3.5, 900.0]


def test_the_schema_says_which() -> None:
    assert pointwise(Schema(features=())) == Pointwise()
    numbers = Schema(features=(), label=Label(kind="number"), more_labels=(Label(name="b", kind="number"),), weight="w")
    assert pointwise(numbers) == SquaredError((1.0, 1.0), ("", "b_"), weighted=True)
