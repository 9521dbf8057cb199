"""The controls' training: one process, whole tables, autograd, clipping and the tables' optimizers written out.

They know neither TorchRec's sharding nor its fused optimizers, neither a carried vector nor a cut weight.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from rtrain.batch import Batch
from rtrain.nn.tables import initial_rows
from rtrain.optim import SGD, Adam, RowWiseAdagrad, SparseOptim
from rtrain.run import Run
from tests.parallel.worlds import STEPS, Tables

Control = tuple[list[float], dict[str, Tensor]]
"""Losses of the steps, and the tables after the last."""
RowsLoss = Callable[[Run, Tensor, Batch], Tensor]
"""(run, logits, global batch) -> the loss that its step goes down by, without rtrain's objective."""


def cross_entropy(run: Run, logits: Tensor, batch: Batch) -> Tensor:
    """Every task's loss over the rows that have its label, weighted, over the number of all rows."""
    labels, total = batch.label.reshape(batch.rows, -1), torch.zeros(())
    weights = run.blueprint.objective.weights  # type: ignore[attr-defined]
    for weight, z, y in zip(weights, logits.reshape(batch.rows, -1).T, labels.T, strict=True):
        here = ~y.isnan()
        z, y = z[here], y[here]
        total = total - weight * (y * z.sigmoid().log() + (1 - y) * (-z).sigmoid().log()).sum()
    return total / batch.rows


def taught_entropy(run: Run, logits: Tensor, batch: Batch) -> Tensor:
    """Of a student, from the file's own columns: by the formula where there is a teacher's logit, else by the label."""
    rows = pq.read_table(run.data.source).take(batch.row.numpy())  # type: ignore[attr-defined]
    alpha, hot = run.model.distillation.alpha, run.model.distillation.temperature  # type: ignore[attr-defined]
    total = torch.zeros(())
    for z, y, teacher in zip(logits, rows["label"].to_pylist(), rows["teacher"].to_pylist(), strict=True):
        of_label = -(y * z.sigmoid().log() + (1 - y) * (-z).sigmoid().log())
        if teacher is None:
            total = total + of_label
            continue
        soft = 1 / (1 + math.exp(-teacher / hot))
        of_teacher = -(soft * (z / hot).sigmoid().log() + (1 - soft) * (-z / hot).sigmoid().log())
        total = total + alpha * of_label + (1 - alpha) * hot**2 * of_teacher
    return total / batch.rows


def squared_entropy(run: Run, logits: Tensor, batch: Batch) -> Tensor:
    """Of `users_model.Blocks`."""
    return binary_cross_entropy_with_logits(logits, batch.label, reduction="none").square().mean()


Between = Callable[[Any, int, Batch, Mapping[str, Tensor], Mapping[str, Tensor]], None]
"""(model, step, its batch, tables and their accumulators by name): done before each step."""


def plain_rows(
    run: Run,
    loss: RowsLoss = cross_entropy,
    *,
    steps: int = STEPS,
    change: Callable[[Any], None] = lambda model: None,
    between: Between = lambda *_: None,
) -> Control:
    """Any ranking model; `change`: done to it before the first step."""
    config: Any = run.model
    model = config.build(run.data.facts, seed=run.seed)
    tables = dict(model.tables.named_parameters())
    for table in run.blueprint.tables:
        tables[f"{table.path}.weight"].data.copy_(initial_rows(table, run.seed, 0, table.rows))
    dense = [p for name, p in model.named_parameters() if not name.startswith("tables.")]
    change(model)
    losses = descend(
        run, tables, dense, lambda batch: loss(run, model(batch), batch), steps=steps, between=partial(between, model)
    )
    return losses, {name.split(".")[-2]: table.detach() for name, table in tables.items()}


def descend(
    run: Run,
    tables: Mapping[str, nn.Parameter],
    dense: list[nn.Parameter],
    loss_of: Callable[[Any], Tensor],
    *,
    steps: int = STEPS,
    learns: bool = True,
    between: Callable[..., None] = lambda *_: None,
) -> list[float]:
    """The loss of each of the run's first global batches; the weights are changed in place, if it learns."""
    states = {name: torch.zeros_like(table) for name, table in tables.items()}
    dtypes = {f"{table.path}.weight": getattr(torch, table.dtype) for table in run.blueprint.tables}
    for name, table in tables.items():
        table.data = kept(table.data, dtypes.get(name))
    of_tables = adam_of(run.sparse_optim, tables.values())
    adam = run.optim.build(dense) if dense else None
    data = run.data.open()
    total = run.total_steps(data.rows("train"))
    reader = data.reader("train", global_batch=run.global_batch, seed=run.seed, rank=0, world_size=1)
    losses = []
    for step, (batch, _cursor) in zip(range(steps), reader, strict=False):
        between(step, batch, {n: t.data for n, t in tables.items()}, states)
        loss = loss_of(batch)
        losses.append(loss.item())
        if not learns:
            continue
        for parameter in (*tables.values(), *dense):
            parameter.grad = None
        loss.backward()
        scale = 1.0
        if adam:
            norm = float(nn.utils.clip_grad_norm_(dense, run.optim.clip_norm))
            scale = min(1.0, run.optim.clip_norm / (norm + 1e-6)) if run.sparse_optim.clip_with_dense else 1.0
            adam.step()
        rate = run.sparse_optim.lr * run.sparse_optim.schedule.factor(step, total)
        for table in tables.values():
            assert table.grad is not None
            table.grad *= scale
        if of_tables:
            of_tables.param_groups[0]["lr"] = rate
            of_tables.step()
            continue
        for name, table in tables.items():
            assert table.grad is not None
            update = rate * descent(run.sparse_optim, states[name], table.grad)
            # fbgemm on CPU rounds what is taken off, and then what is left; of row-wise Adagrad only the latter.
            once = isinstance(run.sparse_optim, RowWiseAdagrad)
            table.data -= update if once else kept(update, dtypes.get(name))
            table.data *= torch.exp(-rate * run.sparse_optim.l2 / divisor(run.sparse_optim, states[name]))
            table.data = kept(table.data, dtypes.get(name))
    reader.close()
    return losses


def kept(weights: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The nearest float32 numbers that a table of that dtype, if it has one, can hold."""
    return weights.to(dtype or torch.float32).float()


def adam_of(optim: SparseOptim, tables: Iterable[nn.Parameter]) -> torch.optim.Adam | None:
    """torch's own of dense gradients, where the tables have it."""
    if not isinstance(optim, Adam):
        return None
    return torch.optim.Adam(tables, betas=optim.betas, eps=optim.eps, weight_decay=optim.l2)


def descent(optim: SparseOptim, state: Tensor, gradient: Tensor) -> Tensor:
    """What a table's optimizer takes off its rows, times the learning rate."""
    if isinstance(optim, SGD):
        return gradient
    squared = gradient**2
    state += squared.mean(1, keepdim=True) if isinstance(optim, RowWiseAdagrad) else squared
    return gradient / divisor(optim, state)


def divisor(optim: SparseOptim, state: Tensor) -> Tensor:
    """What a table's optimizer divides the gradients of its rows by."""
    if isinstance(optim, SGD):
        return torch.ones_like(state)
    return state.sqrt() + optim.eps  # type: ignore[attr-defined]


def far(a: ArrayLike, b: ArrayLike) -> float:
    """The largest difference."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape and a.size
    return float(np.abs(a - b).max())  # nan where one is: Python's max would hide it


def apart(found: tuple[list[float], Tables], control: Control) -> tuple[float, float]:
    """Largest difference of a loss, and of a weight of the tables; a resumed run's losses are the control's last."""
    (losses, tables), (losses_by_hand, by_hand) = found, control
    assert tables.keys() == by_hand.keys()
    return far(losses, losses_by_hand[-len(losses) :]), float(np.max([far(tables[n], by_hand[n]) for n in tables]))
