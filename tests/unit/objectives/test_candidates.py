"""Losses of candidates by loops over positions, of batches that real data give; and one's own loss."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

import rtrain
from recipes import dlrm_movielens, sasrec_movielens, two_tower_movielens
from rtrain import (
    BPR,
    VECTORS,
    CandidateLoss,
    FullSoftmax,
    Histories,
    InBatchSoftmax,
    Negatives,
    Pairs,
    Piece,
    RetrievalConfig,
    SampledSoftmax,
    WeightedSum,
    sequence,
)
from rtrain.data.negatives import Sampler
from rtrain.data.protocol import Data
from rtrain.errors import ConfigError
from rtrain.mesh import Parallel, lay_out
from rtrain.objectives import full_softmax
from rtrain.objectives.ranks import Alone

USERS, ITEMS = 23, 31


@pytest.fixture
def log(tmp_path: Path) -> str:
    draw = np.random.default_rng(1)
    rows = [(u, int(i)) for u in range(USERS) for i in draw.permutation(ITEMS)[: 4 + u % 9] if i != 7]
    users, items = map(list, zip(*rows, strict=True))
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user_id": users, "item_id": items, "timestamp": range(len(rows))}), path)
    return str(path)


def data_of(kind: str, log: str, negatives: Negatives) -> Data:
    common: dict[str, Any] = {"source": log, "users": USERS, "items": ITEMS, "negatives": negatives}
    return Histories(**common, length=4) if kind == "histories" else Pairs(**common)


def given(kind: str, log: str, negatives: Negatives) -> tuple[Any, Any, Tensor, Tensor, Tensor]:
    """Data, a batch of training, queries and candidates as a model would give them of two tables; the items' table."""
    data = data_of(kind, log, negatives).open()
    reader = data.reader("train", global_batch=9, seed=3, rank=0, world_size=1)
    batch, _ = next(iter(reader))
    reader.close()
    draw = torch.Generator().manual_seed(0)
    table = torch.randn(ITEMS, 8, generator=draw)
    rows, positions = batch.target.shape[:2]
    queries = torch.randn(rows, positions, 8, generator=draw)
    item = batch.ids.padded("item")
    candidates = table[item].view(rows, positions, item.shape[1] // positions, 8)
    return data, batch, queries, candidates, table


def users_of(data: Any, batch: Any) -> list[int]:
    of = data.feedback.user if data.longest is None else data.users
    return [int(of[data._of[number]]) for number in batch.row.tolist()]


def trained_items(data: Any, user: int) -> set[int]:
    interactions = zip(data.feedback.user, data.feedback.item, data.codes, strict=True)
    return {int(item) for whose, item, code in interactions if whose == user and code == 0}


@pytest.mark.parametrize("kind", ["pairs", "histories"])
def test_full_softmax_is_the_cross_entropy_over_every_item(
    kind: str, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, batch, queries, candidates, table = given(kind, log, Negatives(by="all"))
    assert 7 not in data.catalogue, "an item of the table that nobody had is no choice"
    every, wanted = torch.from_numpy(data.catalogue), 0.0
    for row, position in (batch.target[..., 0] >= 0).nonzero().tolist():
        scores = table[every] @ queries[row, position] / 0.7
        wanted += float(-scores.log_softmax(0)[(every == batch.target[row, position, 0]).nonzero()[0, 0]])
    leaves = [candidates.clone().requires_grad_() for _ in range(2)]
    found = FullSoftmax(temperature=0.7).loss((queries, leaves[0]), batch.target, Alone())
    assert found.item() == pytest.approx(wanted, rel=1e-6)
    monkeypatch.setattr(full_softmax, "BLOCK_SCORES", 2 * len(every))  # two positions at a time, computed again
    in_blocks = FullSoftmax(temperature=0.7).loss((queries, leaves[1]), batch.target, Alone())
    found.backward()
    in_blocks.backward()
    torch.testing.assert_close(in_blocks, found)
    torch.testing.assert_close(leaves[1].grad, leaves[0].grad)


@pytest.mark.parametrize("kind", ["pairs", "histories"])
@pytest.mark.parametrize("drawn", [Negatives(count=0), Negatives(count=2, known=True)])
def test_in_batch_softmax_leaves_out_what_the_user_had(kind: str, drawn: Negatives, log: str) -> None:
    data, batch, queries, candidates, table = given(kind, log, drawn)
    here = (batch.target[..., 0] >= 0).nonzero().tolist()
    items, users = [int(batch.target[r, t, 0]) for r, t in here], users_of(data, batch)
    wanted, left_out = 0.0, 0
    for n, (row, position) in enumerate(here):
        had = trained_items(data, users[row])
        kept = [m for m, item in enumerate(items) if m == n or item not in had]
        left_out += len([i for i in items if i in had and i != items[n]])
        scores = table[[items[m] for m in kept]] @ queries[row, position]
        often = [math.log(float((data.feedback.item[data.codes == 0] == items[m]).sum())) for m in kept]
        wanted += float(-(scores - torch.tensor(often)).log_softmax(0)[kept.index(n)])
    assert left_out > 5, "the mask is tried"
    found = InBatchSoftmax().loss((queries, candidates), batch.target, Alone())
    assert float(found) == pytest.approx(wanted, rel=1e-6)


def test_sampled_softmax_corrects_for_the_popularity_that_negatives_are_drawn_by(log: str) -> None:
    data, batch, queries, candidates, table = given("pairs", log, Negatives(count=3, by="popularity", power=0.5))
    wanted, item = 0.0, batch.ids.padded("item")
    train = data.feedback.item[data.codes == 0]
    for row in range(batch.rows):
        q = torch.tensor([0.5 * math.log(float((train == i).sum())) for i in item[row].tolist()])
        wanted += float(-(table[item[row]] @ queries[row, 0] - q).log_softmax(0)[0])
    found = SampledSoftmax(correction=0.5).loss((queries, candidates), batch.target, Alone())
    assert float(found) == pytest.approx(wanted, rel=1e-6)


@dataclass(frozen=True, kw_only=True)
class Hinge(CandidateLoss):
    """A user's own."""

    margin: float = 0.5

    def of_scores(self, scores: Tensor) -> Tensor:
        return (self.margin - scores[..., :1] + scores[..., 1:]).clamp(min=0).mean(-1)


def test_ones_own_loss_is_taken_changed_and_trained(tmp_path: Path) -> None:
    run = rtrain.override(sasrec_movielens.debug(), {"model.objective": Hinge(), "duration.steps": 3})
    run = rtrain.override(run, {"model.objective.margin": "0.25", "storage": str(tmp_path), "handoff.export": False})
    assert run.model.objective.margin == 0.25
    assert "model.objective.margin: (absent) -> 0.25" in rtrain.diff(sasrec_movielens.debug(), run)
    rtrain.plan(run)
    result = rtrain.train(run, launcher="inline")
    assert result.metrics["ndcg@10"] > 0


@dataclass(frozen=True, kw_only=True)
class Recent(Negatives):
    """A user's own, as in docs/retrieval.md."""

    since: int = 1000

    def shares(self, catalogue: Any, often: Any) -> Any:
        return (catalogue >= self.since) + 0.1


def test_ones_own_sampler_is_drawn_from(tmp_path: Path) -> None:
    changes = {
        "model.objective": SampledSoftmax(),
        "data.negatives": Recent(count=9),
        "duration.steps": 10,
        "storage": str(tmp_path),
        "handoff.export": False,
    }
    run = rtrain.override(two_tower_movielens.debug(), changes)
    data = run.data.open()
    batch = next(iter(data.reader("train", global_batch=2000, seed=0, rank=0, world_size=1)))[0]
    negatives = batch.ids.padded("item").reshape(batch.rows, -1)[:, 1:]  # type: ignore[attr-defined]
    likely = (data.catalogue >= 1000).sum() * 1.1  # type: ignore[attr-defined]
    share = likely / (likely + (data.catalogue < 1000).sum() * 0.1)  # type: ignore[attr-defined]
    # Of 18,000 draws; what a user had, mostly of the older items, is drawn again.
    assert abs(float((negatives >= 1000).float().mean()) - share) < 0.03 < share - 0.5
    result = rtrain.train(run, launcher="inline")
    assert result is not None and result.metrics["ndcg@10"] > 0


def test_shares_that_cannot_be_drawn_by() -> None:
    class Wrong(Negatives):
        def shares(self, catalogue: Any, often: Any) -> Any:
            return often[:-1]

    class Nothing(Negatives):
        def shares(self, catalogue: Any, often: Any) -> Any:
            return 0 * often

    for own in (Wrong(), Nothing()):
        with pytest.raises(ConfigError, match=r"data.negatives: \w+.shares gave \(\d+,\) numbers for 3 items"):
            Sampler(own, np.arange(3), np.zeros(3, np.int64), np.arange(3))


@dataclass(frozen=True, kw_only=True)
class Gated(RetrievalConfig):
    """A user's own, as in docs/retrieval.md."""

    of_histories: ClassVar[bool] = False

    def pieces(self, facts: Any) -> tuple[Piece, ...]:
        return (Piece(name="tower", build=partial(Tower, self.dim), cost=0.0, takes=(VECTORS, sequence("item"))),)


class Tower(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.gate = nn.Linear(dim, dim)

    def forward(self, user_BE: Tensor, item_BKE: Tensor) -> tuple[Tensor, Tensor]:
        return (user_BE * self.gate(user_BE).sigmoid()).unsqueeze(1), item_BKE.unsqueeze(1)


def test_ones_own_model_is_trained(tmp_path: Path) -> None:
    model = Gated(dim=16, objective=InBatchSoftmax())
    changes = {"model": model, "duration.steps": 30, "storage": str(tmp_path), "handoff.export": False}
    result = rtrain.train(rtrain.override(two_tower_movielens.debug(), changes), launcher="inline")
    assert result is not None and 0 < result.metrics["ndcg@10"] < 1


def test_ones_own_loss_says_what_a_position_costs() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Nothing(CandidateLoss):
        margin: float = 1.0

    with pytest.raises(ConfigError, match="model.objective: Nothing does not say what a position costs"):
        Nothing()


@pytest.mark.parametrize(
    ("objective", "negatives", "said"),
    [
        (FullSoftmax(), Negatives(count=2), "data.negatives.by: 'uniform', but FullSoftmax compares with all items"),
        (BPR(), Negatives(by="all"), "data.negatives.by: 'all', but BPR wants drawn items, not all items"),
        (
            WeightedSum(of=(BPR(), InBatchSoftmax())),
            Negatives(count=2),
            "data.negatives.known: WeightedSum leaves out what a user had",
        ),
        (
            WeightedSum(of=(BPR(), SampledSoftmax())),
            Negatives(count=2, known=True),
            "data.negatives.known: true, but WeightedSum compares with drawn negatives alone",
        ),
        (
            SampledSoftmax(correction=0.75),
            Negatives(by="popularity"),
            "model.objective.correction: 0.75, but negatives are drawn by the popularity to the power of 1 ",
        ),
        (SampledSoftmax(correction=1.0), Negatives(count=2), "to the power of 0 "),
    ],
)
def test_negatives_that_an_objective_cannot_use(objective: Any, negatives: Negatives, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        rtrain.override(two_tower_movielens.run(), {"model.objective": objective, "data.negatives": negatives})
    assert said in str(refused.value)


def test_what_cannot_be_said_of_all_items() -> None:
    with pytest.raises(ConfigError, match="data.negatives.count: 3, but by='all' offers every item"):
        Negatives(by="all", count=3)
    changes = {"model.objective": FullSoftmax(), "data.negatives": Negatives(by="all")}
    model = rtrain.override(sasrec_movielens.run(), changes).model
    for parallel in (Parallel(tensor=2), Parallel(pipeline=2), Parallel(microbatches=2)):
        assert len(list(model.reasons_against(parallel, lay_out(parallel, 2)))) == 1


def test_drawn_candidates_are_named_and_not_mixed_with_all_items() -> None:
    run = two_tower_movielens.run()
    drawn = (rtrain.NDCG(k=10, sampled=100), rtrain.MRR(k=10, sampled=100))
    both = {"metrics": drawn, "evaluation.monitor": "mrr@10_of_100_sampled"}
    assert rtrain.override(run, both).monitored.name == "mrr@10_of_100_sampled"
    mixed = {"metrics": (*drawn, rtrain.RecallAt(k=10)), "evaluation.monitor": "mrr@10_of_100_sampled"}
    with pytest.raises(ConfigError, match="are not of the same candidates"):
        rtrain.override(run, mixed)
    with pytest.raises(ConfigError, match="DLRM scores the rows that there are. Leave out `sampled`"):
        rtrain.override(dlrm_movielens.run(), {"metrics": (rtrain.AUC(), rtrain.NDCG(k=10, sampled=9))})
