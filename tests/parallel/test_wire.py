"""Looked-up vectors and their gradients that travel in 16 bits: as plain torch that rounds them there, and in half the
bytes.

The control rounds what a lookup gives, and the gradient of that, once; of a list whose rows two ranks have, each rank's
sum, and the sum of both. Where float32's own rounding turns one of these around, a vector is another by a 2048th; then
losses were seen to differ by 4e-7, and are by 7e-6 and more from those of float32.
"""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torchrec import JaggedTensor, KeyedTensor

from rtrain.batch import Jagged
from rtrain.errors import ConfigError
from rtrain.mesh import Parallel, Wire, lay_out
from rtrain.nn.tables import VECTORS, TableOptions
from rtrain.optim import SGD, Adagrad, RowWiseAdagrad, SparseOptim
from rtrain.parallel.wire import WireCodecs
from rtrain.rounding import ceil_div
from rtrain.run import Run
from rtrain.training.agreement import refuse
from rtrain.training.replica import Replica
from rtrain.training.trace import trace
from tests.parallel.plain import Control, far, plain_rows
from tests.parallel.test_models import LISTS, MODELS
from tests.parallel.worlds import in_world, tiny, train

AFTER, PARITY = 5, 1e-6
SPARSE: dict[str, SparseOptim] = {
    "sgd": SGD(lr=1.0),
    "adagrad": Adagrad(lr=0.05, eps=1e-4),
    "rowwise": RowWiseAdagrad(lr=0.2, eps=1e-4),
}
LARGE = tuple(TableOptions(table=name, pooling="sum", initial="normal", scale=0.5) for name in ("user", "item"))
"""Whose rounding shows in a loss."""
LAYOUTS = {
    f"{how} {sparse}": (how, sparse)
    for how in ("table_wise", "row_wise", "column_wise")
    for sparse in SPARSE
    if (how, sparse) != ("column_wise", "rowwise")
}


def run_of(rows: str, model: str, how: str, sparse: str, wire: Wire = "float16") -> Run:
    parallel = Parallel(dense="ddp", embeddings=how, wire=wire)  # type: ignore[arg-type]
    return tiny(rows, parallel, SPARSE[sparse], config=replace(MODELS[model], tables=LARGE))  # type: ignore[call-arg]


class Travel(torch.autograd.Function):
    """Of the ranks' sums the sum, all in float16, as is its gradient but for the exponent."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.ranks = len(parts)
        return cast(Tensor, sum(part.half() for part in parts)).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        rounded = (grads[0] * 2.0**10).half().float() / 2.0**10
        return (rounded,) * ctx.ranks


class Travelled(nn.Module):
    """What a collection gives, after it went between the ranks that have its rows."""

    def __init__(self, collection: nn.Module, ranks: int):
        super().__init__()
        self.whole, self.ranks = collection, ranks

    def forward(self, ids: Any) -> Any:
        given = [self._of_rank(rank, ids) for rank in range(self.ranks)]
        if isinstance(given[0], KeyedTensor):
            keys, dims = given[0].keys(), given[0].length_per_key()
            return KeyedTensor(keys, dims, cast(Tensor, Travel.apply(*(part.values() for part in given))))
        values = {key: Travel.apply(*(part[key].values() for part in given)) for key in given[0]}
        return {key: JaggedTensor(cast(Tensor, v), lengths=given[0][key].lengths()) for key, v in values.items()}

    def _of_rank(self, rank: int, ids: Any) -> Any:
        """Looked up in its block of rows alone, zero elsewhere."""
        weights = {}
        for name, weight in self.whole.named_parameters():
            block = ceil_div(len(weight), self.ranks)
            mine = torch.arange(len(weight)) // block == rank
            weights[name] = weight * mine.unsqueeze(1)
        return functional_call(self.whole, weights, (ids,))


def control(run: Run, *, ranks: int) -> Control:
    """`ranks`: those that have rows of each table."""

    def change(model: Any) -> None:
        for name in ("bags", "sequences"):
            if collection := getattr(model.tables, name):
                setattr(model.tables, name, Travelled(collection, ranks))

    return plain_rows(run, steps=AFTER, change=change)


def bytes_of_a_step(run: Run) -> int:
    """Sent by this rank in TorchRec's collectives of numbers that are not ids or lengths."""
    sent, plain = 0, {name: getattr(dist, name) for name in COLLECTIVES}

    def counting(name: str, position: int) -> Any:
        def collective(*args: Any, **given: Any) -> Any:
            nonlocal sent
            data = args[position] if len(args) > position else given["input"]
            parts = data if isinstance(data, list) else [data]
            sent += sum(part.nbytes for part in parts if part.is_floating_point())
            return plain[name](*args, **given)

        return collective

    def before(step: int, replica: Replica) -> None:
        for name, position in COLLECTIVES.items():
            setattr(dist, name, counting(name, position))

    try:
        trace(run, steps=1, before_step=before)
    finally:
        for name, function in plain.items():
            setattr(dist, name, function)
    return sent


COLLECTIVES = {
    name: 1
    for name in ("all_to_all_single", "reduce_scatter_tensor", "reduce_scatter", "all_gather_into_tensor", "all_gather")
}
"""What TorchRec exchanges by, and which argument is sent."""


def looked_up(run: Run) -> dict[str, list[list[float]]]:
    """The vectors of the first ids, as they are evaluated and as they are trained."""
    found: dict[str, list[list[float]]] = {}
    ids = Jagged(("user", "item", "seen"), torch.arange(12) % 50, torch.ones(12, dtype=torch.int32))

    def before(step: int, replica: Replica) -> None:
        assert replica.tables is not None
        for name, grad in (("trained", True), ("evaluated", False), ("trained again", True)):
            with torch.set_grad_enabled(grad):
                found[name] = replica.tables(ids)[VECTORS].tolist()

    trace(run, steps=1, before_step=before)
    return found


def everything(rows: str) -> dict[str, Any]:
    found: dict[str, Any] = {"bytes": {}}
    for model in LISTS:
        for layout, (how, sparse) in LAYOUTS.items():
            found[f"{model} {layout}"] = train(run_of(rows, model, how, sparse))
        for how in ("table_wise", "row_wise"):
            for wire in ("float32", "float16"):
                run = run_of(rows, model, how, "sgd", wire)  # type: ignore[arg-type]
                found["bytes"][f"{model} {how} {wire}"] = bytes_of_a_step(run)
    for wire in ("float32", "float16"):
        found[wire] = looked_up(run_of(rows, "dlrm", "row_wise", "sgd", wire))  # type: ignore[arg-type]
    return found


@pytest.fixture(scope="module")
def found(rows: str) -> dict[int, list[dict[str, Any]]]:
    """World size -> what each rank found."""
    return {size: in_world(size, everything, rows) for size in (1, 2)}


@pytest.mark.parametrize("sparse", SPARSE)
@pytest.mark.parametrize("model", LISTS)
def test_what_travels_is_rounded_and_nothing_else(rows: str, model: str, sparse: str, found: Any) -> None:
    exact = plain_rows(run_of(rows, model, "row_wise", sparse, "float32"), steps=AFTER)[0]
    for layout in (name for name in LAYOUTS if name.endswith(f" {sparse}")):
        run = run_of(rows, model, *LAYOUTS[layout])
        wanted = control(run, ranks=2 if layout.startswith("row_wise") else 1)[0]
        losses = found[2][0][f"{model} {layout}"][:AFTER]
        assert far(losses, wanted) < PARITY, layout
        assert far(losses, exact) > 5 * PARITY, layout
        assert far(found[1][0][f"{model} {layout}"][:AFTER], exact) < PARITY  # one rank sends nothing


def test_half_the_bytes_travel(found: Any) -> None:
    for rank in found[2]:
        for model in LISTS:
            for how in ("table_wise", "row_wise"):
                whole, half = (rank["bytes"][f"{model} {how} {wire}"] for wire in ("float32", "float16"))
                assert whole == 2 * half > 0


def test_an_evaluation_is_in_float32(found: Any) -> None:
    for rank in found[2]:
        exact, rounded = rank["float32"], rank["float16"]
        assert exact["trained"] == exact["evaluated"] == rounded["evaluated"]
        assert rounded["trained"] == rounded["trained again"] != exact["trained"]
        assert (
            far(rounded["trained"], exact["trained"]) < 2**-11 * float(torch.tensor(exact["trained"]).abs().max()) * 2
        )


@pytest.mark.parametrize("rows", [33, 4096, 2**20])
def test_the_gradient_of_a_mean_over_many_rows_is_not_lost(rows: int) -> None:
    """float16 has nothing between 0 and 6e-8, and all its bits from 6e-5 on."""
    backward, grad = WireCodecs("float16", rows=rows).backward, torch.tensor([0.3, -1e-3, 2.0]) / rows
    coded = backward.encode(grad)
    assert coded.dtype == torch.float16
    assert (backward.decode(coded) / grad - 1).abs().max() < 2**-11


def test_what_cannot_travel_so(rows: str) -> None:
    run = run_of(rows, "dlrm", "row_wise", "sgd", "bfloat16")
    with pytest.raises(ConfigError, match="parallel.wire: 'bfloat16' is not what TorchRec sends over gloo"):
        refuse(run, lay_out(run.parallel, 2))
