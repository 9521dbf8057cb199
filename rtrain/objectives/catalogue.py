"""A whole catalogue, or drawn candidates of it, ranked for each user, its items' vectors dealt to the ranks.

Shape legend: Q queries of all data ranks, I items of this rank, K places, E dim.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from rtrain.metrics.catalogue import NO_ITEM, Seen, rank_catalogue
from rtrain.metrics.state import Retrieved, sampled_of
from rtrain.objectives.candidates import candidates
from rtrain.objectives.ranks import Ranks, filled
from rtrain.rounding import ceil_div

QUERIES = 256
"""Whose drawn candidates' vectors are gathered at once: 7 MB of 100 candidates of 64 dims."""


class CatalogueTally:
    """First takes the catalogue's vectors, each rank its own, then queries; keeps what was found first for each."""

    def __init__(self, compared: Callable[[Tensor], Tensor], ranks: Ranks, metrics: Sequence[Any]):
        """Ranked are as many places as the metrics look at, of the candidates that they ask for."""
        self.compared, self.ranks = compared, ranks
        self.depth, self.sampled = max(metric.k for metric in metrics), sampled_of(metrics)
        self._every: NDArray[np.int64] | None = None
        self.vectors, self.items = list[Tensor](), list[Tensor]()
        self.logits, self.labels = list[NDArray[np.float64]](), list[NDArray[np.float64]]()
        self.groups, self.found = list[NDArray[np.int64]](), list[NDArray[np.int64]]()
        self.broken = 0

    def add(self, outputs: tuple[Tensor, Tensor], batch: Any) -> None:
        """Another batch, of the catalogue or of users; a collective over data ranks."""
        queries, candidates = outputs
        if batch.items is not None:
            vectors = self._finite(candidates[:, 0, 0])
            self.vectors.append(vectors)
            self.items.append(torch.from_numpy(batch.items).to(vectors.device))
            return
        asked = self._finite(queries[torch.arange(len(queries), device=queries.device), batch.last])
        self._keep(self.top(asked, batch), batch)

    def _finite(self, vectors: Tensor) -> Tensor:
        """As they are compared; those that are no numbers are counted, and fail the run once every rank is through."""
        vectors = self.compared(vectors.float())
        self.broken += int((~vectors.isfinite()).any(dim=1).sum())
        return vectors.nan_to_num(0.0, 0.0, 0.0)

    def top(self, asked: Tensor, batch: Any) -> NDArray[np.int64]:
        """int64 [B, K]: the items found for this rank's queries [B, E], best first; -1 where there are no more.

        Of equal scores the lower item comes first, so that what is found does not depend on the number of ranks.
        """
        if len(self.vectors) > 1:
            self.vectors, self.items = [torch.cat(self.vectors)], [torch.cat(self.items)]
        share = ceil_div(batch.global_rows, self.ranks.data)
        lists = self._drawn(batch) if self.sampled else batch.seen
        longest = torch.tensor([int(lists.lengths.max(initial=0))], device=asked.device)
        width = max(1, int(self.ranks.gather(longest).max()))
        all_QE = self.ranks.gather(filled(asked, share, 0.0))
        lists_QS = self.ranks.gather(filled(_padded(lists, width).to(asked.device), share, -1))
        scores_QK, items_QK = (self._best_of if self.sampled else self._best)(all_QE, lists_QS)
        blocks = (self.ranks.data, share, self.depth)
        scores = self.ranks.exchange(scores_QK.view(blocks)).transpose(0, 1).flatten(1)
        items = self.ranks.exchange(items_QK.view(blocks)).transpose(0, 1).flatten(1)
        _, found = _first(scores, items, self.depth)
        answer: NDArray[np.int64] = found[: len(asked)].cpu().numpy()
        return answer

    def _best(self, queries_QE: Tensor, seen_QS: Tensor) -> tuple[Tensor, Tensor]:
        """The K best of this rank's items for each query, without what it has seen: scores and items [Q, K]."""
        vectors_IE, items_I = self.vectors[0], self.items[0]
        scores_QK = queries_QE.new_full((len(queries_QE), self.depth), -torch.inf)
        items_QK = torch.full_like(scores_QK, NO_ITEM, dtype=torch.int64)
        if len(items_I):
            found = rank_catalogue(queries_QE, vectors_IE, k=self.depth, seen=_rows_of(items_I, seen_QS))
            kept = found.items_UK.shape[1]
            scores_QK[:, :kept] = found.scores_UK
            items_QK[:, :kept] = torch.where(found.items_UK == NO_ITEM, NO_ITEM, items_I[found.items_UK])
        return scores_QK, items_QK

    def _drawn(self, batch: Any) -> Any:
        """Of each query its candidates: what is to be found, and those that are drawn."""
        if self._every is None:
            own = self.items[0]
            every = self.ranks.gather(filled(own, self.ranks.most(own), NO_ITEM)).cpu().numpy()
            self._every = np.sort(every[every != NO_ITEM])
        return candidates(self._every, batch.row.cpu().numpy(), batch.seen, batch.positives, self.sampled)

    def _best_of(self, queries_QE: Tensor, offered_QC: Tensor) -> tuple[Tensor, Tensor]:
        """The K best of those items of this rank that each query is offered: scores and items [Q, K]."""
        vectors_IE, items_I = self.vectors[0], self.items[0]
        if not len(items_I):
            nothing = torch.full((len(queries_QE), self.depth), NO_ITEM, device=queries_QE.device)
            return torch.full_like(nothing, -torch.inf, dtype=queries_QE.dtype), nothing
        at_QC = torch.searchsorted(items_I, offered_QC.clamp(min=0)).clamp(max=len(items_I) - 1)
        here_QC = items_I[at_QC] == offered_QC
        parts = zip(queries_QE.split(QUERIES), at_QC.split(QUERIES), strict=True)
        scores_QC = torch.cat([(vectors_IE[at] @ asked.unsqueeze(-1)).squeeze(-1) for asked, at in parts])
        scores_QC, items_QC = scores_QC.masked_fill(~here_QC, -torch.inf), offered_QC.masked_fill(~here_QC, NO_ITEM)
        more = max(0, self.depth - offered_QC.shape[1])
        return _first(pad(scores_QC, (0, more), value=-torch.inf), pad(items_QC, (0, more), value=NO_ITEM), self.depth)

    def _keep(self, found_BK: NDArray[np.int64], batch: Any) -> None:
        count, depth = found_BK.shape
        wanted = batch.positives.values
        rows = np.repeat(np.arange(count), batch.positives.lengths)
        # One number a pair of row and item: whether a found item is wanted is whether its number is among them. An item
        # that a user had twice is to be found once.
        span = int(max(found_BK.max(initial=0), wanted.max(initial=0))) + 2
        pairs = np.unique(wanted + rows * span)
        found_pairs_BK = found_BK + np.arange(count)[:, None] * span
        there = found_BK >= 0
        hits_BK = np.isin(found_pairs_BK, pairs) & there
        missed, missed_items = np.divmod(pairs[~np.isin(pairs, found_pairs_BK[there])], span)
        number = batch.row[:count].cpu().numpy()
        place = np.broadcast_to(np.arange(depth), there.shape)
        self.logits.append(np.concatenate([-place[there].astype(np.float64), np.full(len(missed), -float(depth))]))
        self.labels.append(np.concatenate([hits_BK[there].astype(np.float64), np.ones(len(missed))]))
        self.groups.append(np.concatenate([np.repeat(number, there.sum(1)), number[missed]]))
        self.found.append(np.concatenate([found_BK[there], missed_items]))

    def scored(self) -> tuple[dict[str, Retrieved], int]:
        """Of all queries; and how many vectors are not finite."""
        if not self.logits:  # a rank of a pipeline before the last
            nobody = np.empty(0, np.int64)
            return {"": Retrieved(np.empty(0), np.empty(0), nobody, nobody, nobody)}, self.broken
        groups = np.concatenate(self.groups)
        found = Retrieved(
            logits=np.concatenate(self.logits),
            labels=np.concatenate(self.labels),
            groups=groups,
            rows=groups,
            items=np.concatenate(self.found),
        )
        return {"": found}, self.broken


def _padded(lists: Any, width: int) -> Tensor:
    """int64 [B, width]: items of each query, -1 behind them."""
    rows = np.repeat(np.arange(len(lists.lengths)), lists.lengths)
    padded = np.full((len(lists.lengths), width), -1, np.int64)
    padded[rows, np.arange(len(rows)) - lists.offsets[:-1][rows]] = lists.values
    return torch.from_numpy(padded)


def _rows_of(items_I: Tensor, seen_QS: Tensor) -> Seen:
    """Those of the seen items that are among `items_I`, which rise, as places in it."""
    at_QS = torch.searchsorted(items_I, seen_QS.clamp(min=0)).clamp(max=len(items_I) - 1)
    here_QS = items_I[at_QS] == seen_QS
    offsets = torch.cat([at_QS.new_zeros(1), here_QS.sum(1).cumsum(0)])
    return Seen(items=at_QS[here_QS], offsets=offsets)


def _first(scores: Tensor, items: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """The best `depth` of each row, of equal scores the lower item first."""
    by_item = items.argsort(dim=1, stable=True)
    order = scores.gather(1, by_item).argsort(dim=1, descending=True, stable=True)
    at = by_item.gather(1, order)[:, :depth]
    return scores.gather(1, at), items.gather(1, at)
