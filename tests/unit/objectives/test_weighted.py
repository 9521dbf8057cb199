"""A sum of losses: its value and gradients are those of its parts, and what cannot be is refused."""

import pytest
import torch

import rtrain
from recipes import two_tower_movielens
from rtrain import BPR, InBatchSoftmax, SampledSoftmax, WeightedSum
from rtrain.errors import ConfigError
from rtrain.mesh import Parallel, lay_out
from rtrain.objectives.ranks import Alone


def test_a_sum_is_its_parts_with_their_gradients() -> None:
    draw = torch.Generator().manual_seed(0)
    queries, candidates = torch.randn(6, 3, 4, generator=draw), torch.randn(6, 3, 5, 4, generator=draw)
    target = torch.stack([torch.arange(18).view(6, 3), torch.randint(1, 9, (6, 3), generator=draw)], dim=-1)
    target[2, 1] = -1  # pads
    parts = (BPR(temperature=0.5), InBatchSoftmax(temperature=2.0), SampledSoftmax())
    weights = (1.0, 0.25, 0.0)
    wanted, given = (candidates.clone().requires_grad_() for _ in range(2))
    apart = sum(w * part.loss((queries, wanted), target, Alone()) for w, part in zip(weights, parts, strict=True))
    together = WeightedSum(of=parts, weights=weights).loss((queries, given), target, Alone())
    torch.testing.assert_close(together, apart)
    apart.backward()  # type: ignore[union-attr]
    together.backward()
    torch.testing.assert_close(given.grad, wanted.grad)
    plain = sum(part.loss((queries, candidates), target, Alone()) for part in parts)
    torch.testing.assert_close(WeightedSum(of=parts).loss((queries, candidates), target, Alone()), plain)


def test_what_a_position_adds_counts_once() -> None:
    queries, candidates = torch.zeros(2, 1, 4), torch.zeros(2, 1, 2, 4)
    target, added = torch.ones(2, 1, 2, dtype=torch.int64), torch.full((2, 1), 3.0)
    both = WeightedSum(of=(BPR(), BPR()), weights=(0.0, 0.0))
    assert float(both.loss((queries, candidates, added), target, Alone())) == 6.0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"of": ()}, "model.objective.of: a sum of no loss"),
        ({"of": (BPR(),), "weights": (1.0, 2.0)}, "model.objective.weights: 2 weights for 1 losses"),
        ({"of": (BPR(),), "weights": (-1.0,)}, "each must be finite and at least 0, got -1.0"),
        ({"of": (BPR(), BPR(cosine=True))}, "some losses have cosine and some not"),
    ],
)
def test_sums_that_cannot_be(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        WeightedSum(**given)  # type: ignore[arg-type]


def test_it_asks_of_data_and_layout_what_its_losses_ask() -> None:
    run = two_tower_movielens.run()
    summed = WeightedSum(of=(BPR(), InBatchSoftmax()), weights=(0.5, 1.0))
    with pytest.raises(ConfigError, match="data.negatives.count: 0, but WeightedSum compares with drawn negatives"):
        rtrain.plan(rtrain.override(run, {"model.objective": summed}))
    changes = {"model.objective": summed, "data.negatives.count": 2, "data.negatives.known": True}
    drawn = rtrain.override(run, changes)
    parallel = Parallel(dense="zero", zero_stage=1, microbatches=2)
    assert "compares within the whole batch" in " ".join(drawn.model.reasons_against(parallel, lay_out(parallel, 2)))
    changed = rtrain.override(drawn, {"model.objective.weights": "0.1,0.9", "model.objective.of.0.temperature": "2"})
    assert changed.model.objective.weights == (0.1, 0.9) and changed.model.objective.of[0].temperature == 2
    assert rtrain.diff(drawn, changed)
