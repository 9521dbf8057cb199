"""The best k of every item for each user: no sampled candidates.

U users, I items, D dimensions, K places.

Krichene & Rendle, "On sampled metrics for item recommendation", KDD 2020, is why every item is a candidate.
Users are independent: over ranks, each ranks its own users against the whole table.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rtrain.errors import ConfigError
from rtrain.rounding import ceil_div

NO_ITEM = -1
"""Stands in the places that a user has no candidate for."""
BLOCK_SCORES = 1 << 24
"""Scores held at once by default: 64 MiB of float32."""
ALIGNED = 16
"""A row of scores has a multiple of so many: 64 bytes of float32, a line of the cache."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What each user is not to be offered, as one jagged list."""

    items: Tensor
    """int64 [n], on any device: item rows, each user's in any order; repeats do no harm"""
    offsets: Tensor
    """int64 [U + 1], same device: user u's are items[offsets[u]:offsets[u + 1]]"""


@dataclass(frozen=True)
class Ranked:
    """Each user's best items, best first."""

    items_UK: Tensor
    """int64: item rows; `NO_ITEM` after a user's last candidate"""
    scores_UK: Tensor
    """dtype of the users' vectors; -inf beside `NO_ITEM`"""


@torch.no_grad()
def rank_catalogue(
    users_UD: Tensor, items_ID: Tensor, *, k: int, seen: Seen | None = None, block_users: int | None = None
) -> Ranked:
    """Top k by dot product for every user, on the vectors' device, a block of users at a time.

    Items of equal score stand in the order of their rows, also where they straddle place k; torch.topk
    alone promises no order. Another block size may round a product differently, so only scores that are
    equal as computed count as ties. K is at most I: with fewer items than k, every item is ranked.

    Raises `ConfigError` for a k or block below 1, an empty table, vectors that do not fit together, seen lists
    that do not fit the users or the table, and scores that are not a number.
    """
    places, block = _checked(users_UD, items_ID, k, seen, block_users)
    items_UK = torch.empty(len(users_UD), places, dtype=torch.int64, device=users_UD.device)
    scores_UK = users_UD.new_empty(len(users_UD), places)
    # Rows of scores that begin at odd places, and memory that is new to the process, each cost as much as the product.
    held_UI = users_UD.new_empty(min(block, len(users_UD)), ALIGNED * ceil_div(len(items_ID), ALIGNED))
    for start in range(0, len(users_UD), block):
        rows = slice(start, min(start + block, len(users_UD)))
        scores_UI = held_UI[: rows.stop - start, : len(items_ID)]
        torch.mm(users_UD[rows], items_ID.T, out=scores_UI)
        if seen is not None:
            _mask(scores_UI, seen, rows)
        scores_UK[rows], items_UK[rows] = _best(scores_UI, places)
    if scores_UK.isnan().any():  # topk puts nan before every number, so one among the scores is one here
        raise ConfigError(
            "rank_catalogue: a score is not a number. Check the users' and items' vectors for nan or inf."
        )
    items_UK[scores_UK == -torch.inf] = NO_ITEM
    return Ranked(items_UK, scores_UK)


def _checked(users_UD: Tensor, items_ID: Tensor, k: int, seen: Seen | None, block: int | None) -> tuple[int, int]:
    where = "rank_catalogue"
    if k < 1 or (block is not None and block < 1):
        raise ConfigError(f"{where}: k and block_users must be at least 1, got {k} and {block}")
    if users_UD.ndim != 2 or items_ID.ndim != 2 or users_UD.shape[1] != items_ID.shape[1] or not len(items_ID):
        got = f"{tuple(users_UD.shape)} and {tuple(items_ID.shape)}"
        raise ConfigError(f"{where}: users [U, D] and items [I, D] need the same D and at least one item, got {got}")
    if seen is not None:
        if len(seen.offsets) != len(users_UD) + 1:
            raise ConfigError(f"{where}: {len(users_UD)} users need as many offsets and one, got {len(seen.offsets)}")
        if (
            int(seen.offsets[0]) != 0
            or int(seen.offsets[-1]) != len(seen.items)
            or bool((seen.offsets.diff() < 0).any())
        ):
            raise ConfigError(f"{where}: seen.offsets must rise from 0 to the {len(seen.items)} seen items")
        if len(seen.items) and (int(seen.items.min()) < 0 or int(seen.items.max()) >= len(items_ID)):
            raise ConfigError(f"{where}: a seen item is outside the table's rows 0..{len(items_ID) - 1}")
    return min(k, len(items_ID)), block or max(1, BLOCK_SCORES // len(items_ID))


def _mask(scores_UI: Tensor, seen: Seen, rows: slice) -> None:
    offsets = seen.offsets[rows.start : rows.stop + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    owner = torch.repeat_interleave(torch.arange(len(scores_UI), device=offsets.device), offsets.diff())
    at = (owner.to(scores_UI.device), seen.items[first:last].to(scores_UI.device))
    scores_UI[at] = -torch.inf


def _best(scores_UI: Tensor, places: int) -> tuple[Tensor, Tensor]:
    # One place more than asked shows whether equal scores straddle the last place.
    values, items = scores_UI.topk(min(places + 1, scores_UI.shape[1]), dim=1)
    if values.shape[1] > places:
        last, beyond = values[:, places - 1], values[:, places]
        split = torch.nonzero((last == beyond) & (last > -torch.inf))[:, 0]
        values, items = values[:, :places].clone(), items[:, :places].clone()
        for row in split.tolist():  # of trained vectors few; of counts nearly all, so that none is sorted whole
            above = int((values[row] > last[row]).sum())
            items[row, above:] = torch.nonzero(scores_UI[row] == last[row])[: places - above, 0]
    items, by_item = items.sort(dim=1)
    values, by_score = values.gather(1, by_item).sort(dim=1, descending=True, stable=True)
    return values, items.gather(1, by_score)
