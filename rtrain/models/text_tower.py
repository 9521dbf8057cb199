"""Two towers whose items are known by a text: blocks of attention over its words, and their mean.

Two towers of text: Huang et al. (DSSM), CIKM 2013; the mean over what a transformer makes of the words: Reimers &
Gurevych, arXiv:1908.10084. Without the items' ids an item that nobody had yet is found by its text.

Shape legend: B rows, K candidates of a row, T words of all of them, N = B * K candidates, U different items, W words of
the longest text that the data allow, E dim.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from rtrain.data.retrieval import RetrievalFacts
from rtrain.data.retrieval_batch import places
from rtrain.errors import ConfigError
from rtrain.models.plan import Piece
from rtrain.models.protocol import Blueprint
from rtrain.models.sasrec import SASRecBlock
from rtrain.models.two_tower import TwoTower, TwoTowers, mean_by_place
from rtrain.nn.tables import VECTORS, sequence


@dataclass(frozen=True, kw_only=True)
class TextTower(TwoTower):
    """As `TwoTower`, but of each text of items (`Words`, `Text`) the order is read, by blocks of attention."""

    layers: int = 1
    """Blocks that read a text."""
    heads: int = 2
    """Attention heads of a block."""
    attention: Literal["jagged", "padded"] = "jagged"
    """As SASRec's: whether texts of similar length are computed together, or all as long as the longest."""
    ids: bool = True
    """Whether an item's own vector goes into its tower too; without it items are known by their features alone, and one
    that nobody had yet has a vector as good as any."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("layers", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}: must be at least 1, got {getattr(self, name)}")
        if self.dim % self.heads:
            raise ConfigError(f"model.heads: {self.heads} does not divide model.dim, {self.dim}")

    @property
    def width(self) -> int:
        """Of a block's feed-forward layer: `dim`, as SASRec's."""
        return self.dim

    def blueprint(self, facts: RetrievalFacts) -> Blueprint:
        """See `rtrain.models.protocol`.

        Raises:
            ConfigError: data of another kind, or without a text of items.
        """
        whole = super().blueprint(facts)
        if not facts.texts:
            raise ConfigError(
                "data.item_features: TextTower reads a text of items, and there is none. Give Words or Text, or use "
                "TwoTower"
            )
        if self.ids:
            return whole
        if self.item_vectors:
            raise ConfigError(
                "model.item_vectors: TextTower has no table of items, which these would begin. Set model.ids to true, "
                "or leave them out"
            )
        return replace(
            whole,
            tables=tuple(table for table in whole.tables if table.name != "item"),
            features=tuple(name for name in whole.features if name != "item"),
        )

    def pieces(self, facts: RetrievalFacts) -> tuple[Piece, ...]:
        """Both towers are one."""
        own = (sequence("item"),) if self.ids else ()
        beside = [name for feature in facts.item_features for name in (sequence(feature), places(feature))]
        towers = partial(TextTowers, self, facts)
        return (Piece(name="tower", build=towers, cost=0.0, takes=(VECTORS, "item", *own, *beside)),)


class TextTowers(TwoTowers):
    """Gives [B, 1, E] and [B, 1, K, E]."""

    def __init__(self, config: TextTower, facts: RetrievalFacts):
        super().__init__(config, len(facts.user_features), len(facts.item_features) - (not config.ids))
        self.ids = config.ids
        self.features = nn.ModuleList(
            TextVector(config, facts.texts[name]) if name in facts.texts else Mean() for name in facts.item_features
        )

    def forward(self, user_BV: Tensor, item_BK: Tensor, *beside: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides' vectors; `item_BK`: ids; `beside`: their vectors, unless only features are read, then features'.

        Those are of each feature of items its vectors [B, T, E] and their places [B, T].
        """
        own, pairs = (list(beside[:1]), beside[1:]) if self.ids else ([], beside)
        of_features = zip(self.features, pairs[::2], pairs[1::2], strict=True)
        known = [feature(vectors, place, item_BK) for feature, vectors, place in of_features]
        return self.user(user_BV).unsqueeze(1), self.item(torch.cat([*own, *known], dim=-1)).unsqueeze(1)


class Mean(nn.Module):
    """[B, K, E]: of each candidate the mean of its vectors, or zeros."""

    def forward(self, vectors_BTE: Tensor, place_BT: Tensor, item_BK: Tensor) -> Tensor:
        """See `mean_by_place`."""
        return mean_by_place(vectors_BTE, place_BT, item_BK.shape[1])


class TextVector(nn.Module):
    """[B, K, E]: of each candidate the mean of what blocks make of its words, or zeros where it has none.

    An item that several rows of the batch have is read once.
    """

    def __init__(self, config: TextTower, longest: int):
        super().__init__()
        self.positions = nn.Parameter(torch.empty(longest, config.dim).normal_(0.0, config.scale))
        self.blocks = nn.ModuleList(SASRecBlock(config, causal=False) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, words_BTE: Tensor, place_BT: Tensor, item_BK: Tensor) -> Tensor:
        """Of each row the words of its candidates one after the other, and which candidate each belongs to, or -1."""
        at_UW, real_UW, which_N = by_item(place_BT, item_BK, len(self.positions))
        x_UWE = words_BTE.flatten(0, 1)[at_UW] + self.positions
        seen_UW = real_UW | ~real_UW.any(1, keepdim=True)  # who has no word sees what is not read below
        for block in self.blocks:
            x_UWE = block(x_UWE, seen_UW)
        real_UW1 = real_UW.to(x_UWE.dtype).unsqueeze(-1)
        mean_UE = (self.norm(x_UWE) * real_UW1).sum(1) / real_UW1.sum(1).clamp(min=1)
        out: Tensor = mean_UE[which_N].unflatten(0, item_BK.shape)
        return out


def by_item(place_BT: Tensor, item_BK: Tensor, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where each item's words lie in `place_BT.flatten()` [U, W], whether they are there, and the item of each of N.

    All candidates without a word, those that only pad among them, are one item.
    """
    at_BT, (rows, total) = place_BT.clamp(min=0), place_BT.shape
    count_BK = torch.zeros_like(item_BK).scatter_add(1, at_BT, (place_BT >= 0).to(item_BK.dtype))
    row_B1 = torch.arange(rows, device=item_BK.device).unsqueeze(1)
    begin_N = (row_B1 * total + count_BK.cumsum(1) - count_BK).flatten()
    count_N = count_BK.flatten()
    items_U, which_N = torch.unique(item_BK.flatten().masked_fill(count_N == 0, -1), return_inverse=True)
    every_N = torch.arange(len(which_N), device=item_BK.device)
    first_U = torch.full_like(items_U, len(which_N)).scatter_reduce(0, which_N, every_N, "amin")
    word_W = torch.arange(longest, device=item_BK.device)
    real_UW = word_W < count_N[first_U].unsqueeze(1)
    return torch.where(real_UW, begin_N[first_U].unsqueeze(1) + word_W, 0), real_UW, which_N
