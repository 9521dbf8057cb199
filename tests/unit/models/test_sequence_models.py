"""What a position sees: itself and what came before; what stands behind a row's end, or beside it, changes nothing."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from rtrain.data.retrieval import RetrievalFacts
from rtrain.errors import ConfigError
from rtrain.models.hstu import BUCKET, HSTU
from rtrain.models.plan import drawn
from rtrain.models.sasrec import SASRec
from rtrain.nn import jagged
from rtrain.nn.jagged import groups_of
from rtrain.nn.tables import mask, sequence
from rtrain.parallel.stage import Stage

FACTS = RetrievalFacts(users=1, items=9, longest=8, negatives=1)
CONFIGS = {
    "sasrec": SASRec(dim=8, layers=2, heads=2, dropout=0.0, scale=0.5),
    "sasrec padded": SASRec(dim=8, layers=2, heads=2, dropout=0.0, scale=0.5, attention="padded"),
    "hstu": HSTU(dim=8, layers=2, heads=2, dropout=0.0, buckets=12, scale=0.5),
    "hstu padded": HSTU(dim=8, layers=2, heads=2, dropout=0.0, buckets=12, scale=0.5, attention="padded"),
}


def tower(name: str) -> Stage:
    return stage_of(CONFIGS[name])


def stage_of(config: Any, facts: RetrievalFacts = FACTS) -> Stage:
    pieces = config.pieces(facts)
    return Stage([drawn(p, 0, first=pieces[0].name) for p in pieces], [p.takes for p in pieces])


def named_of(times_BT: Tensor, history_BTE: Tensor, item: Tensor, real_BT: Tensor | None = None) -> dict[str, Tensor]:
    """Rows of all positions, unless it is said which are real."""
    real = torch.ones(times_BT.shape, dtype=torch.bool) if real_BT is None else real_BT
    return {"times": times_BT, sequence("history"): history_BTE, mask("history"): real, sequence("item"): item}


def asked(
    model: Stage, times_BT: Tensor, history_BTE: Tensor, real_BT: Tensor | None = None, offered_each: int = 2
) -> Tensor:
    rows, length, dim = history_BTE.shape
    item = torch.ones(rows, offered_each * length, dim, dtype=history_BTE.dtype)
    queries, offered = model(**named_of(times_BT, history_BTE, item, real_BT))
    assert offered.shape == (rows, length, offered_each, dim)
    return queries  # type: ignore[no-any-return]


def rows(seed: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    times = torch.randint(0, 60, (3, 6), generator=g).sort(1).values  # seconds apart that 12 buckets tell apart
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
    _, offered = model(**named_of(times, history, torch.zeros(3, 1, 8)))
    assert offered.shape == (3, 6, 0, 8)


@pytest.mark.parametrize("attention", ["jagged", "padded"])
def test_hstu_is_its_formula(attention: Any) -> None:
    """Position by position, head by head, as the paper writes it."""
    model = stage_of(HSTU(dim=8, layers=1, heads=2, dropout=0.0, buckets=12, scale=0.5, attention=attention))
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
            out = x[row, i] + linear(block.norm(seen) * u[row, i], block.out.weight, block.out.bias)
            assert torch.allclose(last.norm(out), found[row, i], atol=1e-5)


def test_hstu_tells_times_apart_and_can_do_without() -> None:
    times, history = rows()
    timed, untimed = tower("hstu"), stage_of(HSTU(dim=8, layers=1, heads=2, dropout=0.0, buckets=0))
    later = times * 1000
    assert not torch.allclose(asked(timed, times, history), asked(timed, later, history))
    assert torch.equal(asked(untimed, times, history), asked(untimed, later, history))


LENGTHS = (1, 40, 0, 33, 17, 25, 3, 39, 0, 8)


def unequal(*lengths: int) -> tuple[Tensor, Tensor, Tensor]:
    """Times, float64 vectors and where they are real; behind a row's end stand zeros, as tables give them."""
    g = torch.Generator().manual_seed(2)
    real = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    times = torch.randint(0, 60, real.shape, generator=g).sort(1).values * real
    return times, torch.randn(*real.shape, 8, generator=g, dtype=torch.float64) * real.unsqueeze(2), real


def both_ways(name: str) -> tuple[Stage, Stage]:
    """The same weights, float64, without and with padding."""
    facts = replace(FACTS, longest=50)
    jagged, padded = (stage_of(CONFIGS[found], facts).double() for found in (name, f"{name} padded"))
    assert all(torch.equal(a, b) for a, b in zip(jagged.parameters(), padded.parameters(), strict=True))
    return jagged, padded


@pytest.mark.parametrize("name", ["sasrec", "hstu"])
def test_blocks_learn_the_same_with_and_without_padding(name: str) -> None:
    """Outputs, and gradients of every weight and of the histories, rows of nothing and of one item among the others."""
    times, history, real = unequal(*LENGTHS)
    assert len(groups_of(real).shapes) > 2
    found = []
    for model in both_ways(name):
        leaf = history.clone().requires_grad_()
        queries = asked(model, times, leaf, real)[real]
        (queries * torch.arange(queries.numel(), dtype=torch.float64).view_as(queries).sin()).sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters()} | {"history": leaf.grad}
        assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values())
        found.append(gradients | {"queries": queries.detach()})
    assert found[0].keys() == found[1].keys()
    for of, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][of], rtol=1e-9, atol=1e-12), of


@pytest.mark.parametrize(
    ("name", "layers"), [("sasrec", ["attention.qkv", "mlp.up", "mlp.down"]), ("hstu", ["attention.uvqk"])]
)
def test_blocks_compute_on_little_that_only_pads(name: str, layers: list[str]) -> None:
    times, history, real = unequal(*LENGTHS)
    for layer in layers:
        computed: list[int] = []
        for model in both_ways(name):
            block: Any = model.pieces[1]
            block.get_submodule(layer).register_forward_pre_hook(
                lambda _, args, found=computed: found.append(args[0].flatten(0, -2).shape[0])
            )
            asked(model, times, history, real)
        jagged, padded = computed
        assert padded == real.numel() and real.sum() <= jagged < 1.3 * int(real.sum()) < padded


def test_hstu_in_training_draws_the_same_dropout_with_and_without_padding() -> None:
    times, history, real = unequal(*LENGTHS)
    found = []
    for attention in ("jagged", "padded"):
        model = stage_of(replace(CONFIGS["hstu"], dropout=0.5, attention=attention), replace(FACTS, longest=50))
        torch.manual_seed(5)
        found.append(asked(model.double(), times, history, real)[real])
    assert torch.allclose(*found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_is_read_behind_a_rows_end(name: str) -> None:
    model, (times, history, real) = stage_of(CONFIGS[name], replace(FACTS, longest=50)).double(), unequal(*LENGTHS)
    before = asked(model, times, history, real)[real]
    noise = torch.where(real.unsqueeze(2), history, torch.full_like(history, 50.0))
    assert torch.equal(asked(model, times + 1000 * ~real, noise, real)[real], before)


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_of_nothing_alone_are_finite(name: str) -> None:
    """Those of the catalogue, which has no histories."""
    times, history, real = torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3, 1, 8), torch.zeros(3, 1).bool()
    assert asked(tower(name), times, history, real).isfinite().all()


def test_places_in_the_source_do_not_pass_for_times() -> None:
    untimed = SimpleNamespace(feedback=SimpleNamespace(timed=False))
    with pytest.raises(ConfigError, match=r"^model\.buckets: HSTU tells 64 spans of time apart, but"):
        HSTU().check(untimed)
    HSTU(buckets=0).check(untimed)
    HSTU().check(SimpleNamespace(feedback=SimpleNamespace(timed=True)))


@pytest.mark.parametrize("name", ["sasrec", "hstu"])
def test_a_step_asks_once_how_long_its_rows_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each time waits for all that it has been given to do."""
    asked_for: list[int] = []
    make = jagged._groups
    monkeypatch.setattr(jagged, "_groups", lambda mask: asked_for.append(len(mask)) or make(mask))
    times, history = rows()
    asked(tower(name), times, history)
    assert asked_for == [3]
