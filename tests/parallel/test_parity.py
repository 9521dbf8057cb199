"""`parity` sees what is wrong by little: a gradient of one rank, with every loss as it should be."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from torch import Tensor

from recipes import gpt_stdlib
from rtrain.mesh import Parallel
from rtrain.models.dlrm import DLRM
from rtrain.objectives.pointwise import Pointwise
from rtrain.optim import Adagrad
from rtrain.parity import LOSS, parity
from rtrain.schema import Schema
from rtrain.text import Text, TokenizerFile
from tests.parallel.worlds import SCHEMA, TINY, tiny


@dataclass(frozen=True)
class Leaning(Pointwise):
    """Its gradient is too large by a hundredth on all data ranks but the first."""

    def loss(self, logits: Tensor, target: Tensor, ranks: object = None) -> Tensor:
        loss = super().loss(logits, target, ranks)
        return loss + 0.01 * (loss - loss.detach()) * min(getattr(ranks, "data_index"), 1)  # noqa: B009


@dataclass(frozen=True, kw_only=True)
class Leans(DLRM):
    """The tests' model with that loss."""

    def objective(self, schema: Schema) -> Pointwise:
        return Leaning()


def test_a_gradient_that_is_wrong_by_a_hundredth_on_one_rank_differs(rows: str) -> None:
    right = tiny(rows, Parallel(data=2, dense="ddp"), Adagrad(lr=0.05))
    wrong = replace(right, model=Leans(dim=TINY.dim, bottom=TINY.bottom, top=TINY.top))
    layouts = (Parallel(data=2, dense="ddp"),)
    (holds,) = parity(right, layouts=layouts).layouts
    (differs,) = parity(wrong, layouts=layouts).layouts
    assert holds.verdict == "equal" and holds.max_loss_diff < LOSS / 3, holds
    assert differs.verdict == "differs" and differs.max_loss_diff > LOSS, differs


def test_the_recipes_rates_are_said_to_be_lowered(rows: str) -> None:
    said: list[str] = []
    run = tiny(rows, Parallel(dense="ddp"), Adagrad(lr=0.05, eps=1e-3))
    parity(run, layouts=(Parallel(data=2, dense="ddp"),), steps=2, say=said.append)
    assert said[0] == "with optim.lr 0.003, sparse_optim.lr 0.005, at which rounding stays rounding"


@pytest.mark.parametrize("tokens", [False, True])
def test_texts_are_read_alike_at_any_layout(rows: str, tmp_path: Path, tokens: bool) -> None:
    draw, table = np.random.default_rng(3), pq.read_table(rows)
    words = ["red", "green", "old", "new", "cat", "dog"]
    said = [" ".join(draw.choice(words, draw.integers(0, 5))) for _ in range(table.num_rows)]
    pq.write_table(table.append_column("title", pa.array(said)), tmp_path / "rows.parquet", row_group_size=70)
    text = Text(name="title", rows=32)
    if tokens:
        kept = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(["?", *words])}, "?"))
        kept.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        kept.save(str(tmp_path / "tokenizer.json"))
        text = Text(name="title", tokenizer=TokenizerFile(file=str(tmp_path / "tokenizer.json")))
    schema = replace(SCHEMA, features=(*SCHEMA.features, text))
    run = tiny(str(tmp_path / "rows.parquet"), Parallel(dense="ddp"), Adagrad(lr=0.05), schema=schema)
    layouts = [Parallel(data=2, dense="ddp", embeddings=how) for how in ("table_wise", "row_wise", "column_wise")]
    found = parity(run, layouts=layouts)
    assert found.holds and not found.refused, str(found)


def test_products_of_bfloat16_are_near_at_any_layout() -> None:
    layouts = (
        Parallel(data=2, dense="ddp", microbatches=2, precision="bfloat16"),
        Parallel(data=2, zero_stage=3, precision="bfloat16"),
        Parallel(data=1, tensor=2, precision="bfloat16"),
        Parallel(data=1, pipeline=2, microbatches=4, schedule="zbv_zero_bubble", precision="bfloat16"),
    )
    found = parity(gpt_stdlib.debug(), layouts=layouts)
    assert found.holds and not found.refused, str(found)
    assert all(of.max_loss_diff > LOSS for of in found.layouts), "products were rounded"
