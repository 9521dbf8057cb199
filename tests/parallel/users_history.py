"""A ranking model of one's own that reads a list as a sequence, under tensor ranks and stages alike."""

from dataclasses import dataclass, replace

from torch import Tensor

from rtrain import Piece, Schema
from rtrain.nn.tables import mask, sequence
from tests.parallel.users_model import Block, Blocks


class Attending(Block):
    """The first block, beside whose input goes a sum over the history that weighs what is like the row's own ids."""

    def forward(self, *given: Tensor) -> Tensor:
        dense_BD, vectors_BV, history_BTE, mask_BT = given
        own_BE = vectors_BV[:, : history_BTE.shape[2]]
        like_BT = (history_BTE * own_BE.unsqueeze(1)).sum(2).sigmoid() * mask_BT
        return super().forward(dense_BD, vectors_BV, (like_BT.unsqueeze(2) * history_BTE).sum(1))


@dataclass(frozen=True, kw_only=True)
class Historian(Blocks):
    """`Blocks` whose list `seen` is a sequence."""

    def sequence_features(self, schema: Schema) -> tuple[str, ...]:
        return ("seen",)

    def pieces(self, schema: Schema) -> tuple[Piece, ...]:
        first, *others = super().pieces(schema)
        widths = (sum(schema.dense_widths) + self.width(schema) + self.dim, 8)
        takes = (*first.takes, sequence("seen"), mask("seen"))
        return (replace(first, build=lambda: Attending(*widths), takes=takes), *others)
