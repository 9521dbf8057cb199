"""A sparse matrix times vectors, as one call of which torch knows the gradient, and `plan` the size.

Shape legend: N nodes, M edges (both directions of each are there), E dim.
"""

from typing import Any

import torch
from torch import Tensor

EDGES = ("graph.begin", "graph.node", "graph.weight")
"""Inputs that are a symmetric matrix's rows one behind the other: int64 [N + 1], where each begins; int64 [M], its
columns; float32 [M], what stands there."""


@torch.library.custom_op("rtrain::along", mutates_args=())
def along(begin: Tensor, node: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    """Vectors [N, E], each the sum over a node's edges of weight times the vector at the other end; see `EDGES`."""
    with torch.autocast(x.device.type, enabled=False):  # torch multiplies no sparse matrix of 16 bits
        size = (len(x), len(x))
        matrix = torch.sparse_csr_tensor(begin, node, weight, size, check_invariants=False)  # checked where it was made
        found: Tensor = torch.sparse.mm(matrix, x.to(weight.dtype))
    return found


@along.register_fake
def _(begin: Tensor, node: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape, dtype=weight.dtype)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _back(ctx: Any, gradient: Tensor) -> tuple[None, None, None, Tensor]:
    return None, None, None, along(*ctx.saved_tensors, gradient)  # the matrix is symmetric


along.register_autograd(_back, setup_context=_keep)


def bytes_along(node: Tensor, weight: Tensor, x: Tensor) -> int:
    """That `along` reads and writes: of each edge its end, its weight and a vector; and the sums."""
    size = weight.element_size() * x.shape[1]
    return node.nbytes + weight.nbytes + (len(node) + len(x)) * size
