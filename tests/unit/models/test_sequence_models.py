"""What a position sees: itself and what came before; what stands behind a row's end, or beside it, changes nothing."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rtrain.data.retrieval import RetrievalFacts
from rtrain.models.hstu import BUCKET, HSTU
from rtrain.models.plan import drawn
from rtrain.models.sasrec import SASRec
from rtrain.nn.tables import sequence
from rtrain.parallel.stage import Stage

FACTS = RetrievalFacts(users=1, items=9, longest=8, negatives=1)
CONFIGS = {
    "sasrec": SASRec(dim=8, layers=2, heads=2, dropout=0.0, scale=0.5),
    "hstu": HSTU(dim=8, layers=2, heads=2, dropout=0.0, buckets=12, scale=0.5),
}


def tower(name: str) -> Stage:
    return stage_of(CONFIGS[name])


def stage_of(config: Any) -> Stage:
    pieces = config.pieces(FACTS)
    return Stage([drawn(p, 0, first=pieces[0].name) for p in pieces], [p.takes for p in pieces])


def asked(model: Stage, times_BT: Tensor, history_BTE: Tensor, offered_each: int = 2) -> Tensor:
    rows, length, dim = history_BTE.shape
    named = {sequence("history"): history_BTE, sequence("item"): torch.ones(rows, offered_each * length, dim)}
    queries, offered = model(times=times_BT, **named)
    assert offered.shape == (rows, length, offered_each, dim)
    return queries  # type: ignore[no-any-return]


def rows(seed: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    times = torch.randint(0, 5000, (3, 6), generator=g).sort(1).values
    return times, torch.randn(3, 6, 8, generator=g)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_position_sees_nothing_of_what_comes_after(name: str) -> None:
    model, (times, history) = tower(name), rows()
    before = asked(model, times, history)
    times[:, 4:] += 77
    history[:, 4:] = 9.0
    after = asked(model, times, history)
    assert torch.equal(before[:, :4], after[:, :4]) and not torch.allclose(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_is_the_same_alone_and_beside_longer_ones(name: str) -> None:
    model, (times, history) = tower(name), rows()
    alone = asked(model, times[:1, :3], history[:1, :3])
    # The same sums in matrices of another shape: some roundings of 6e-8.
    assert torch.allclose(asked(model, times, history)[:1, :3], alone, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_of_who_only_asks_nothing_is_offered(name: str) -> None:
    model, (times, history) = tower(name), rows()
    named = {sequence("history"): history, sequence("item"): torch.zeros(3, 1, 8)}
    _, offered = model(times=times, **named)
    assert offered.shape == (3, 6, 0, 8)


def test_hstu_is_its_formula() -> None:
    """Position by position, head by head, as the paper writes it."""
    model = stage_of(HSTU(dim=8, layers=1, heads=2, dropout=0.0, buckets=12, scale=0.5))
    times, history = rows()
    embed, whole_block, last = model.pieces
    block: Any = whole_block.attention
    found = asked(model, times, history)
    x = history * 8**0.5 + embed.positions[:6]
    of_heads = nn.functional.silu(block.uvqk(whole_block.norm(x))).unflatten(-1, (2, 4, 4))  # type: ignore[operator]
    u, v, q, k = (of_heads[:, :, :, n].flatten(2) for n in range(4))
    for row in range(3):
        for i in range(6):
            seen = torch.zeros(8)
            for j in range(i + 1):
                seconds = max(1, int(times[row, i] - times[row, j]))
                bias = block.distance[i - j] + block.time[min(11, int(math.log(seconds) / BUCKET))]
                for head in (slice(0, 4), slice(4, 8)):
                    weight = nn.functional.silu(q[row, i, head] @ k[row, j, head] + bias) / 8
                    seen[head] += weight * v[row, j, head]
            out = x[row, i] + block.out(block.norm(seen) * u[row, i])
            assert torch.allclose(last.norm(out), found[row, i], atol=1e-5)


def test_hstu_tells_times_apart_and_can_do_without() -> None:
    times, history = rows()
    timed, untimed = tower("hstu"), stage_of(HSTU(dim=8, layers=1, heads=2, dropout=0.0, buckets=0))
    later = times * 1000
    assert not torch.allclose(asked(timed, times, history), asked(timed, later, history))
    assert torch.equal(asked(untimed, times, history), asked(untimed, later, history))
