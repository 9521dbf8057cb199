"""What a model, its data and its metrics do not agree on is said before anything starts."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rtrain.batch import Batch
from rtrain.data.protocol import AnyBatch
from rtrain.data.retrieval_batch import RetrievalBatch
from rtrain.data.tokens import TokenBatch
from rtrain.errors import ConfigError
from rtrain.mesh import Parallel
from rtrain.metrics.state import Metric, Partial, takes
from rtrain.models.plan import Piece, chain
from rtrain.optim import SGD
from rtrain.run import Run
from rtrain.schema import Schema
from rtrain.training.agreement import open_data
from tests.parallel.users_history import Historian
from tests.parallel.users_model import Blocks
from tests.parallel.worlds import tiny, write_rows


@dataclass(frozen=True, kw_only=True)
class Misspelt(Blocks):
    name: str = "dens"

    def pieces(self, schema: Schema) -> tuple[Piece, ...]:
        first, *others = super().pieces(schema)
        return (replace(first, takes=(self.name, *first.takes[1:])), *others)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    write_rows(str(tmp_path / "rows.parquet"))
    return tiny(str(tmp_path / "rows.parquet"), Parallel(), SGD(), config=Misspelt(dim=16))


def test_a_name_that_nothing_gives(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"Misspelt: its piece 'blocks\.0' takes 'dens', .* did you mean 'dense'"):
        open_data(run)
    with pytest.raises(ConfigError, match=r"takes 'times', .* give\. They give dense, vectors$"):
        open_data(replace(run, model=Misspelt(dim=16, name="times")))


def test_what_tables_give_is_known(run: Run) -> None:
    open_data(replace(run, model=Historian(dim=16)))
    open_data(replace(run, model=Blocks(dim=16)))


def test_a_piece_that_lacks_what_it_takes_says_so() -> None:
    """Of data that do not tell their names beforehand."""
    with pytest.raises(ConfigError, match=r"a piece \(Identity\) takes 'x', which neither .* They give y$"):
        chain([nn.Identity()], [("x",)], (), {"y": torch.zeros(1)})


class Mine(Metric):
    name = "mine"
    higher_is_better = True

    def partial(self, rows) -> Partial:  # type: ignore[no-untyped-def]  # what is tested
        raise AssertionError("never asked")

    def value(self, partial: Partial) -> float:
        raise AssertionError("never asked")


class Named(Mine):
    def partial(self, of_rows: "list[int] | tuple[Any, ...]") -> Partial:
        raise AssertionError("never asked")


def test_what_a_metric_measures_is_told_by_its_annotation_whatever_the_arguments_name() -> None:
    with pytest.raises(ConfigError, match=r"^metrics: Mine.partial does not say what it measures. Annotate"):
        takes(Mine(), list)
    assert takes(Named(), list[int]) and not takes(Named(), dict)


@pytest.mark.parametrize("kind", [Batch, TokenBatch, RetrievalBatch], ids=lambda kind: kind.__name__)
def test_a_batch_has_what_the_replica_asks_of_one(kind: type) -> None:
    asked = {name for name in vars(AnyBatch) if not name.startswith("_")}
    assert {"rows", "row", "global_rows", "loss_units", "inputs", "target", "padded", "to"} == asked
    assert asked <= {*dir(kind), *(field.name for field in fields(kind))}
