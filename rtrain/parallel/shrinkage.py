"""L2 on every row of a table in every step, read or not, for tables of any size: a row is caught up when it is read.

After each step of rate `lr` every weight is multiplied by exp(-lr * l2 / r), where r is what the table's optimizer
divides a gradient by: 1 for SGD, the root of the accumulator plus eps for the others. As the accumulator of a row that
is not read stays as it is, so does r, and the factors of the steps since it was last read make one: exp(-(sum of
their rates) * l2 / r). Loss and L2 balance where the dense form of either has them: gradient + l2 * weight = 0.

Shape legend: n ids that are read, R rows of this rank's shard of a table, E its columns.
"""

from itertools import pairwise
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn

from rtrain.optim import SparseOptim


class Shrinkage:
    """Of all shards that this rank has."""

    def __init__(self, sharded: nn.Module, optim: SparseOptim):
        """Hooks itself before every read of the fused tables inside `sharded`."""
        self.l2, self.eps = optim.l2, getattr(optim, "eps", 0.0)
        self.passed = 0.0
        """Sum of the rates of the steps so far."""
        self.shards: list[_Shard] = []
        # TorchRec keeps what looks up in plain lists, which `modules()` does not see.
        lookups = [lookup for module in sharded.modules() for lookup in getattr(module, "_lookups", ())]
        if not lookups:
            raise RuntimeError("TorchRec's sharded tables have no _lookups: sparse_optim.l2 cannot be applied")
        for fused in (module for lookup in lookups for module in lookup.modules()):
            if isinstance(fused, SplitTableBatchedEmbeddingBagsCodegen):
                fused.register_forward_pre_hook(self._before_a_read(fused), with_kwargs=True)

    def stepped(self, lr: float) -> None:
        """A step of that rate has updated the tables."""
        self.passed += lr

    def catch_up(self) -> None:
        """Bring every row up to the last step, as what is stored has to be."""
        for shard in self.shards:
            shard.shrink(slice(None), self.passed)

    def begin(self) -> None:
        """The rows are fresh, or as stored."""
        for shard in self.shards:
            shard.until.fill_(self.passed)

    def _before_a_read(self, fused: SplitTableBatchedEmbeddingBagsCodegen) -> Any:
        weights, states = fused.split_embedding_weights(), fused.split_optimizer_states()
        own = [
            _Shard(weight, state[0] if state else None, l2=self.l2, eps=self.eps)
            for weight, state in zip(weights, states or [[]] * len(weights), strict=True)
        ]
        self.shards += own
        of_features = [own[table] for table in fused.feature_table_map]

        def catch_up(module: nn.Module, args: Any, given: dict[str, Any]) -> None:
            ids, offsets = given["indices"], given["offsets"]
            ends = offsets[:: (len(offsets) - 1) // len(of_features)].tolist()
            for shard, (begin, end) in zip(of_features, pairwise(ends), strict=True):
                shard.shrink(ids[begin:end], self.passed)

        return catch_up


class _Shard:
    def __init__(self, weight_RE: Tensor, state: Tensor | None, *, l2: float, eps: float):
        """`state`: the accumulator, [R] or [R, E], or flat; none of SGD."""
        self.weight_RE, self.l2, self.eps = weight_RE.detach(), l2, eps
        self.state = None if state is None else state.detach().view(len(weight_RE), -1)
        # Rates are summed over a whole run, and their differences are what counts: float32 would lose them.
        self.until = torch.zeros(len(weight_RE), dtype=torch.float64, device=weight_RE.device)

    @torch.no_grad()
    def shrink(self, ids: Any, passed: float) -> None:
        """The rows of `ids`, of which one may be there several times: all its writes are the same."""
        steps_n1 = (passed - self.until[ids]).unsqueeze(1)
        divided_by = 1.0 if self.state is None else self.state[ids].double().sqrt() + self.eps
        factor = torch.exp(-self.l2 * steps_n1 / divided_by)
        # What no step has passed over since stays as it is, also where it was never updated and eps is 0.
        factor = factor.where(steps_n1 > 0, 1.0)
        self.weight_RE[ids] = (self.weight_RE[ids] * factor).to(self.weight_RE.dtype)
        self.until[ids] = passed
