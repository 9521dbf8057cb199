"""The ranking of a whole catalogue against a loop over users, with equal scores, and with fewer items than places."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rtrain import BPR, InBatchSoftmax, SampledBinary, SampledSoftmax
from rtrain.data.columns import Lists
from rtrain.metrics import MRR, NDCG, HitRate, RecallAt
from rtrain.objectives.candidates import candidates
from rtrain.objectives.catalogue import CatalogueTally
from rtrain.objectives.ranks import Alone


@dataclass
class Asked:
    last: Tensor
    row: Tensor
    global_rows: int
    items: Any = None
    seen: Any = None
    positives: Any = None


def ragged(rows: list[list[int]]) -> Lists:
    values = np.array([item for row in rows for item in row], np.int64)
    return Lists.of(values, np.array([len(row) for row in rows]))


def ranked(
    users_UE: Tensor, items_IE: Tensor, ids: list[int], seen: Any, wanted: Any, depth: int, sampled: int = 0
) -> CatalogueTally:
    tally = CatalogueTally(BPR().compared, Alone(), [NDCG(k=depth, sampled=sampled)])
    for part in np.array_split(np.arange(len(ids)), 3):  # the catalogue comes in several batches
        rows = torch.from_numpy(part)
        offered = items_IE[rows].view(-1, 1, 1, items_IE.shape[1])
        numbers = torch.full((len(part),), -1)
        batch = Asked(torch.zeros_like(numbers), numbers, len(part), items=np.array(ids)[part])
        tally.add((items_IE[rows].unsqueeze(1), offered), batch)
    count = len(users_UE)
    batch = Asked(
        torch.ones(count, dtype=torch.int64), torch.arange(100, 100 + count), count,
        seen=ragged(seen), positives=ragged(wanted),
    )  # fmt: skip
    other = torch.full_like(users_UE, 9.0)  # a position that nobody is asked from
    tally.add((torch.stack([other, users_UE], dim=1), torch.empty(count, 2, 0, users_UE.shape[1])), batch)
    return tally


def by_loop(scores_UI: Tensor, ids: list[int], seen: Any, wanted: Any, k: int) -> dict[str, float]:
    """Each user's list by Python's own sort, and the metrics by their definitions."""
    found: dict[str, list[float]] = {"ndcg": [], "recall": [], "mrr": [], "hit": []}
    for scores, had, hoped in zip(scores_UI.tolist(), seen, wanted, strict=True):
        left = sorted((-s, item) for s, item in zip(scores, ids, strict=True) if item not in set(had))
        hits = [float(item in hoped) for _, item in left[:k]]
        ideal = sum(1 / np.log2(p + 2) for p in range(min(k, len(hoped))))
        found["ndcg"].append(sum(h / np.log2(p + 2) for p, h in enumerate(hits)) / ideal)
        found["recall"].append(sum(hits) / len(hoped))
        found["mrr"].append(max((h / (p + 1) for p, h in enumerate(hits)), default=0.0))
        found["hit"].append(float(sum(hits) > 0))
    return {name: float(np.mean(values)) for name, values in found.items()}


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "equal scores"])
@pytest.mark.parametrize(("count", "depth"), [(300, 10), (8, 10), (50, 50)])
def test_the_catalogue_is_ranked_as_by_a_loop_over_users(ties: bool, count: int, depth: int) -> None:
    g = torch.Generator().manual_seed(3)
    draw = np.random.default_rng(4)
    ids = sorted(draw.permutation(2 * count)[:count].tolist())
    users, items = torch.randn(40, 4, generator=g), torch.randn(count, 4, generator=g)
    if ties:  # products of small whole numbers: most scores are the same as others
        users, items = users.sign(), items.sign()
    wanted = [draw.choice(ids, size=draw.integers(1, 6), replace=False).tolist() for _ in range(40)]
    seen = [draw.choice(ids, size=draw.integers(0, min(count, 30)), replace=False).tolist() for _ in range(40)]
    seen = [sorted(set(had) - set(hoped)) for had, hoped in zip(seen, wanted, strict=True)]
    tally = ranked(users, items, ids, seen, wanted, depth)
    scored, broken = tally.scored()
    expected = by_loop(users @ items.T, ids, seen, wanted, depth)
    assert broken == 0
    metrics = {"ndcg": NDCG(k=depth), "recall": RecallAt(k=depth), "mrr": MRR(k=depth), "hit": HitRate(k=depth)}
    found = {name: metric.value(metric.partial(scored[""])) for name, metric in metrics.items()}
    assert found == pytest.approx(expected, abs=1e-12)
    assert 0 < found["hit"] <= 1


def test_an_item_that_is_wanted_twice_is_to_be_found_once() -> None:
    tally = ranked(torch.eye(2), torch.eye(2), [0, 1], [[], []], [[0, 0, 1], [1]], depth=2)
    (scored,) = tally.scored()[0].values()
    assert RecallAt(k=2).value(RecallAt(k=2).partial(scored)) == 1.0
    assert int(scored.labels.sum()) == 3


def test_vectors_that_are_no_numbers_are_counted() -> None:
    users, items = torch.ones(2, 4), torch.ones(5, 4)
    items[3, 1] = torch.nan
    users[0, 0] = torch.inf
    assert ranked(users, items, list(range(5)), [[], []], [[1], [2]], 3).scored()[1] == 2


def test_losses_are_what_their_papers_say() -> None:
    g = torch.Generator().manual_seed(0)
    queries, candidates = torch.randn(3, 2, 4, generator=g), torch.randn(3, 2, 5, 4, generator=g)
    item = torch.tensor([[4, 7], [2, -1], [-1, -1]])
    target, here = torch.stack([item, torch.full_like(item, 3)], dim=-1), (item >= 0).float()
    s = torch.einsum("bte,btke->btk", queries, candidates)
    positive, negative = s[..., :1], s[..., 1:]
    expected = {
        "bpr": -(positive - negative).sigmoid().log().mean(-1),
        "binary": -positive.sigmoid().log()[..., 0] - (1 - negative.sigmoid()).log().mean(-1),
        "softmax": s.logsumexp(-1) - s[..., 0],
    }
    for name, objective in (("bpr", BPR()), ("binary", SampledBinary()), ("softmax", SampledSoftmax())):
        loss = objective.loss((queries, candidates), target, Alone())
        assert float(loss) == pytest.approx(float((expected[name] * here).sum()), rel=1e-6)
    cosine = SampledSoftmax(cosine=True, temperature=0.1)
    unit = torch.nn.functional.cosine_similarity(queries.unsqueeze(2), candidates, dim=-1) / 0.1
    wanted = ((unit.logsumexp(-1) - unit[..., 0]) * here).sum()
    assert float(cosine.loss((queries, candidates), target, Alone())) == pytest.approx(float(wanted), rel=1e-5)


def test_the_in_batch_softmax_is_over_all_other_items_less_their_popularity() -> None:
    g = torch.Generator().manual_seed(0)
    queries, candidates = torch.randn(4, 2, 3, generator=g), torch.randn(4, 2, 1, 3, generator=g)
    item = torch.tensor([[4, 7], [2, -1], [7, 5], [-1, -1]])  # 7 is there twice
    often = torch.tensor([[10, 20], [1, -1], [20, 3], [-1, -1]])
    asked = [(b, t) for b in range(4) for t in range(2) if item[b, t] >= 0]
    for correction in (True, False):
        total = 0.0
        for b, t in asked:
            others = [at for at in asked if at == (b, t) or item[at] != item[b, t]]
            scores = torch.stack(
                [queries[b, t] @ candidates[at][0] / 0.5 - correction * often[at].float().log() for at in others]
            )
            total += float(scores.logsumexp(0) - scores[others.index((b, t))])
        objective = InBatchSoftmax(temperature=0.5, correction=correction)
        loss = objective.loss((queries, candidates), torch.stack([item, often], dim=-1), Alone())
        assert float(loss) == pytest.approx(total, rel=1e-5)
    nobody = torch.full((4, 2, 2), -1)
    assert float(InBatchSoftmax().loss((queries, candidates), nobody, Alone())) == 0.0


def test_drawn_candidates_are_what_is_to_be_found_and_so_many_others_that_nobody_had() -> None:
    draw = np.random.default_rng(0)
    catalogue = np.sort(draw.permutation(200)[:80])
    seen = [draw.permutation(catalogue)[:n].tolist() for n in (0, 5, 40, 76, 80)]
    wanted = [draw.permutation(np.setdiff1d(catalogue, had))[:2].tolist() for had in seen]
    numbers = np.array([7, 3, 900, 1, 2])
    found = candidates(catalogue, numbers, ragged(seen), ragged(wanted), 30)
    for user, (had, hoped) in enumerate(zip(seen, wanted, strict=True)):
        mine = found.values[found.offsets[user] : found.offsets[user + 1]].tolist()
        left = set(catalogue.tolist()) - set(had) - set(hoped)
        assert len(mine) == len(set(mine)) == len(hoped) + min(30, len(left))
        assert set(hoped) <= set(mine) <= left | set(hoped)
        alone = candidates(catalogue, numbers[[user]], ragged([had]), ragged([hoped]), 30)
        assert alone.values.tolist() == mine, "a user's candidates do not depend on who else is asked"
    everybody = candidates(catalogue, np.arange(4000), ragged([[]] * 4000), ragged([[]] * 4000), 8)
    often = np.bincount(np.searchsorted(catalogue, everybody.values), minlength=80)
    # 4,000 draws of 8 of 80: 400 of each item, of standard deviation 19; six of those.
    assert often.sum() == 32_000 and abs(often - 400).max() < 114


def test_ranks_of_drawn_candidates_are_those_of_a_loop() -> None:
    draw = torch.Generator().manual_seed(4)
    users, items = torch.randn(7, 4, generator=draw), torch.randn(40, 4, generator=draw)
    items[5] = items[9]  # equal scores
    ids = [3 * n for n in range(40)]
    order = np.random.default_rng(2)
    seen = [order.permutation(ids)[: 4 * n].tolist() for n in range(7)]
    wanted = [order.permutation(np.setdiff1d(ids, had))[:2].tolist() for had in seen]
    offered = candidates(np.array(ids), np.arange(100, 107), ragged(seen), ragged(wanted), 10)
    hidden = [
        sorted(set(ids) - set(offered.values[offered.offsets[u] : offered.offsets[u + 1]].tolist())) for u in range(7)
    ]
    scored = ranked(users, items, ids, seen, wanted, depth=20, sampled=10).scored()[0][""]
    expected = by_loop(users @ items.T, ids, hidden, wanted, k=3)
    for metric, name in ((NDCG(k=3), "ndcg"), (RecallAt(k=3), "recall"), (MRR(k=3), "mrr"), (HitRate(k=3), "hit")):
        assert metric.value(metric.partial(scored)) == pytest.approx(expected[name], abs=1e-12)
