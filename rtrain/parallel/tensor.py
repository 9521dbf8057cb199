"""Tensor parallelism with sequence-parallel norms, as hooks on plain modules (Korthikanti et al., arXiv:2205.05198).

A weight is a plain tensor that holds this rank's share, because DeepSpeed takes no DTensors. Outside
of attention, feed-forward layer and head, each tensor rank has its share of the tokens, or of the rows (`mesh.Dealt`):
a region's input is gathered over the ranks, its output summed and dealt out again. So every replicated weight
sees only a share of them (or of the heads), and its gradient is summed over the ranks.

Shape legend: B rows, T tokens, S tokens of a rank's share, N tokens of all rows, V vocabulary of a rank's share.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from rtrain.mesh import Dealt
from rtrain.models.plan import Piece
from rtrain.objectives.ranks import IGNORED
from rtrain.parallel.chunks import Place


class TensorRank:
    """This rank among those that share each weight."""

    def __init__(self, group: Any, index: int, size: int, dealt: Dealt = "rows"):
        self.group, self.index, self.size = group, index, size
        self.dim = {"rows": 0, "tokens": 1}[dealt]
        """Of activations, the one that is dealt to the ranks."""

    def gather(self, out: Tensor, local: Tensor) -> None:
        """Every rank's `local`, one behind the other, into `out` on all."""
        dist.all_gather_into_tensor(out, local, group=self.group)

    def scatter(self, out: Tensor, local: Tensor) -> None:
        """This rank's part of the sum of every rank's `local` into `out`."""
        dist.reduce_scatter_tensor(out, local, group=self.group)

    def reduce(self, x: Tensor, by: Any = dist.ReduceOp.SUM) -> None:
        """The sum (or what `by` says) of every rank's `x` in its place."""
        dist.all_reduce(x, by, group=self.group)

    def place(self, piece: Piece, parameter: str, shape: tuple[int, ...], *, writes: bool) -> Place:
        """Where this rank's share of a parameter lies in the whole one, whose shape is given.

        `writes`: whether this rank is the one of its data group that writes checkpoints.
        """
        name = f"{piece.name}.{parameter}"
        dim = piece.cut_dim(parameter, self.size)
        if dim is None:
            return Place(
                name=name, shape=shape, offsets=(0,) * len(shape), sizes=shape, writes=writes and not self.index
            )
        share = shape[dim] // self.size
        offsets = tuple(self.index * share if d == dim else 0 for d in range(len(shape)))
        sizes = tuple(share if d == dim else n for d, n in enumerate(shape))
        return Place(name=name, shape=shape, offsets=offsets, sizes=sizes, writes=writes)

    def connect(self, piece: Piece, module: nn.Module) -> None:
        """Put the collectives of a piece around its submodules; the module holds this rank's shares already."""
        if self.size == 1:
            return
        for name, parameter in module.named_parameters():
            if piece.cut_dim(name, self.size) is None:
                parameter.register_hook(self._sum)
        for name in piece.kv:
            attention: Any = module.get_submodule(name)
            if piece.cut_dim(f"{name}.wk.weight", self.size) is None:
                attention.kv_chosen = self._kv_heads(attention)
        for name, child in module.named_modules():
            if isinstance(child, nn.Embedding) and piece.cut_dim(f"{name}.weight", self.size) is not None:
                self._look_up_own_rows(child)
        for name in piece.enter:
            module.get_submodule(name).register_forward_pre_hook(
                lambda _, args: tuple(_gathered(x, self) for x in args)
            )
        for name in piece.leave:
            self._leave(module.get_submodule(name))
        for name in piece.norms:
            self._norm_over_ranks(module.get_submodule(name))

    def cross_entropy(self, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        """Sum of the tokens' cross-entropies in nats, float32; targets of `IGNORED` count for nothing."""
        if self.size == 1:
            return cross_entropy(logits_NV.float(), targets_N, ignore_index=IGNORED, reduction="sum")
        out: Tensor = _VocabLoss.apply(logits_NV.float(), targets_N, self)  # type: ignore[no-untyped-call]
        return out

    def _leave(self, child: nn.Module) -> None:
        if isinstance(child, nn.Linear) and child.bias is not None:  # once, not by every rank
            child.forward = lambda x: _scattered(linear(x, child.weight), self) + child.bias  # type: ignore[method-assign,assignment]
        else:
            child.register_forward_hook(lambda _, __, out: _scattered(out, self))

    def _norm_over_ranks(self, norm: nn.Module) -> None:
        assert isinstance(norm, nn.LayerNorm)

        def forward(x: Tensor) -> Tensor:
            count = x.shape[-1] * self.size
            centred = x - _summed(x.sum(-1, keepdim=True), self) / count
            variance = _summed(centred.pow(2).sum(-1, keepdim=True), self) / count
            return centred * torch.rsqrt(variance + norm.eps) * norm.weight + norm.bias

        norm.forward = forward  # type: ignore[method-assign,assignment]

    def _sum(self, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        self.reduce(total)
        return total

    def _kv_heads(self, attention: Any) -> list[int]:
        """With more tensor ranks than key-value heads these are whole on every rank, which picks those that it uses."""
        held = attention.wk.weight.shape[0] // attention.head_dim
        queries = attention.wq.weight.shape[0] // attention.head_dim
        share = queries * self.size // held  # query heads of one key-value head, over all ranks
        first, last = self.index * queries // share, (self.index * queries + queries - 1) // share
        return list(range(first, last + 1))

    def _look_up_own_rows(self, embedding: nn.Embedding) -> None:
        """Tokens of other ranks' rows give zeros here; the sum over the ranks puts the whole together."""
        rows = embedding.weight.shape[0]

        def shift(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            local = args[0] - self.index * rows
            return (torch.where((local < 0) | (local >= rows), rows, local),)

        def forward(tokens: Tensor) -> Tensor:
            return nn.functional.embedding(tokens.clamp(max=rows - 1), embedding.weight) * (tokens < rows).unsqueeze(-1)

        embedding.register_forward_pre_hook(shift)
        embedding.forward = forward  # type: ignore[method-assign,assignment]


def _gather(x: Tensor, ranks: TensorRank) -> Tensor:
    """[B, S, ...] of each rank -> [B, T, ...] on every rank; of rows their number grows, not that of tokens."""
    local = x.transpose(0, ranks.dim).contiguous()
    out = local.new_empty((local.shape[0] * ranks.size, *local.shape[1:]))
    ranks.gather(out, local)
    return out.transpose(0, ranks.dim).contiguous()


def _scatter(x: Tensor, ranks: TensorRank) -> Tensor:
    """Partial sums [B, T, ...] on every rank -> this rank's tokens (or rows) of the sum, [B, S, ...]."""
    local = x.transpose(0, ranks.dim).contiguous()
    out = local.new_empty((local.shape[0] // ranks.size, *local.shape[1:]))
    ranks.scatter(out, local)
    return out.transpose(0, ranks.dim).contiguous()


class _Gather(torch.autograd.Function):
    """Gathers tokens or rows; backward sums what each rank's share of the weights says of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: TensorRank) -> Tensor:
        ctx.ranks = ranks
        return _gather(x, ranks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _scatter(gradients[0], ctx.ranks), None


class _Scatter(torch.autograd.Function):
    """Sums over the ranks and deals the tokens or rows out; backward gathers their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: TensorRank) -> Tensor:
        ctx.ranks = ranks
        return _scatter(x, ranks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _gather(gradients[0], ctx.ranks), None


class _Sum(torch.autograd.Function):
    """Sums over the ranks, each of which goes on with the sum: so are the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: TensorRank) -> Tensor:
        ctx.ranks = ranks
        return ranks._sum(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks._sum(gradients[0]), None


def _summed(x: Tensor, ranks: TensorRank) -> Tensor:
    out: Tensor = _Sum.apply(x, ranks)  # type: ignore[no-untyped-call]
    return out


def _gathered(x: Tensor, ranks: TensorRank) -> Tensor:
    out: Tensor = _Gather.apply(x, ranks)  # type: ignore[no-untyped-call]
    return out


def _scattered(x: Tensor, ranks: TensorRank) -> Tensor:
    out: Tensor = _Scatter.apply(x, ranks)  # type: ignore[no-untyped-call]
    return out


class _VocabLoss(torch.autograd.Function):
    """Cross-entropy whose logits are divided over the ranks: [N, V] and int64 [N] -> the sum over the tokens.

    No rank ever holds the logits of the whole vocabulary.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, ranks: TensorRank) -> Tensor:
        share = logits_NV.shape[1]
        peak_N = logits_NV.amax(dim=1)
        ranks.reduce(peak_N, dist.ReduceOp.MAX)
        exp_NV = (logits_NV - peak_N.unsqueeze(1)).exp()
        local_N = targets_N - ranks.index * share
        here_N = (local_N >= 0) & (local_N < share)
        picked_N = logits_NV.gather(1, local_N.clamp(0, share - 1).unsqueeze(1)).squeeze(1) * here_N
        both_2N = torch.stack((exp_NV.sum(dim=1), picked_N))
        ranks.reduce(both_2N)
        counts_N = targets_N != IGNORED
        ctx.save_for_backward(exp_NV / both_2N[0].unsqueeze(1), local_N, here_N, counts_N)
        return ((both_2N[0].log() + peak_N - both_2N[1]) * counts_N).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        softmax_NV, local_N, here_N, counts_N = ctx.saved_tensors
        gradient_NV = softmax_NV.clone()
        index_N1 = local_N.clamp(0, softmax_NV.shape[1] - 1).unsqueeze(1)
        gradient_NV.scatter_add_(1, index_N1, -here_N.to(gradient_NV.dtype).unsqueeze(1))
        return gradient_NV * counts_N.unsqueeze(1) * gradients[0], None, None
