"""HSTU as a ranker: its candidate is one more item of the row's history, and a row knows nothing of those beside it."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import linear, silu

from rtrain.errors import ConfigError
from rtrain.mesh import Parallel, lay_out
from rtrain.models.hstu_ranker import HSTURanker
from rtrain.models.plan import drawn
from rtrain.parallel.stage import Stage
from rtrain.schema import Dense, Id, IdList, Schema
from tests.parallel.worlds import SCHEMA, TIMED

LENGTHS, LONGEST = (0, 4, 2), 4


def tower(config: HSTURanker) -> Stage:
    pieces = config.pieces(TIMED if config.buckets else SCHEMA)
    return Stage([drawn(p, 0, first=pieces[0].name) for p in pieces], [p.takes for p in pieces]).double()


@pytest.mark.parametrize("buckets", [0, 6])
@pytest.mark.parametrize("attention", ["jagged", "padded"])
def test_a_logit_is_its_formula(attention: Any, buckets: int) -> None:
    """Row by row, position by position, head by head."""
    config = HSTURanker(dim=8, history="seen", candidate="item", layers=1, top=(5,), scale=0.5, attention=attention)
    made = tower(replace(config, buckets=buckets))
    draw = torch.Generator().manual_seed(1)
    dense, vectors, history = (
        torch.randn(3, *shape, generator=draw, dtype=torch.float64)
        for shape in ((sum(SCHEMA.dense_widths),), (16,), (LONGEST, 8))
    )
    real = torch.arange(LONGEST) < torch.tensor(LENGTHS).unsqueeze(1)
    history = history * real.unsqueeze(2)
    named = {"dense": dense, "vectors": vectors, "vectors.seen": history, "mask.seen": real}
    ago = torch.tensor([[0, 0, 0, 0], [90, 3, 1, 0], [2, 1, 0, 0]])
    found = made(**named, **{"times.seen": ago})
    _, whole_block, head = made.pieces
    block: Any = whole_block.attention
    for row, length in enumerate(LENGTHS):
        x = torch.cat([history[row, :length], vectors[row, 8:].unsqueeze(0)]) * 8**0.5
        of_heads = silu(block.uvqk(whole_block.norm(x))).unflatten(-1, (2, 4, 4))
        u, v, q, k = (of_heads[:, :, n].flatten(1) for n in range(4))
        seen = torch.zeros(8, dtype=torch.float64)
        for j in range(length + 1):
            for of_head in (slice(0, 4), slice(4, 8)):
                bias = block.distance[length - j]
                if buckets:  # seconds between the item and the candidate, which is of the row's own moment
                    seconds = int(ago[row, j]) if j < length else 0
                    bias = bias + block.time[min(int(math.log(max(seconds, 1)) / 0.301), buckets - 1)]
                weight = silu(q[length, of_head] @ k[j, of_head] + bias) / (LONGEST + 1)
                seen[of_head] += weight * v[j, of_head]
        out = x[length] + linear(block.norm(seen) * u[length], block.out.weight, block.out.bias)
        expected = head.top(torch.cat([dense[row], vectors[row], head.norm(out)]))
        torch.testing.assert_close(found[row], expected[0], rtol=1e-9, atol=1e-12)


def test_what_it_cannot_read_is_refused() -> None:
    def said(config: HSTURanker, schema: Schema = SCHEMA) -> str:
        with pytest.raises(ConfigError) as refused:
            config.blueprint(schema)
        return str(refused.value)

    model = HSTURanker(dim=8, history="seen", candidate="item")
    assert "model.history: 'history' is not an IdList or IdSequence" in said(HSTURanker(candidate="item"))
    endless = Schema(features=(Dense(name="x"), Id(name="item", rows=9), IdList(name="seen", rows=9, table="item")))
    assert "Give it a max_length" in said(model, endless)
    assert "model.heads: 3 does not divide the dim of 'seen', 8" in said(
        HSTURanker(dim=8, history="seen", candidate="item", heads=3)
    )
    assert "model.buckets: HSTURanker tells 6 spans of time apart, but 'seen' has no times. Name" in said(
        replace(model, buckets=6)
    )
    replace(model, buckets=6).blueprint(TIMED)
    with pytest.raises(ConfigError, match="model.buckets: must be at least 0, got -1"):
        replace(model, buckets=-1)
    halves = Parallel(tensor=4)
    assert "parallel.tensor: 4 does not divide model.heads, 2" in " ".join(
        model.reasons_against(halves, lay_out(halves, 4))
    )
    assert all(isinstance(piece.build(), nn.Module) for piece in model.pieces(SCHEMA))
