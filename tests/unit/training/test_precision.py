"""Products of fewer bits while training: what stays float32, and what is refused."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes import bpr_movielens, dlrm_movielens, gpt_stdlib
from rtrain import Cluster
from rtrain.errors import ConfigError
from rtrain.mesh import lay_out
from rtrain.parallel.precision import multiplied_as
from rtrain.parity import LOSS_16_BITS, steady
from rtrain.run import Run
from rtrain.training.agreement import open_data, refuse
from rtrain.training.breakdown import Stopwatch
from rtrain.training.replica import Replica
from rtrain.training.trace import trace
from rtrain.training.world import join, leave


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    yield
    leave()


def run_of(recipe: Any, folder: Path, **layout: Any) -> Run:
    run: Run = recipe.debug()
    parallel = replace(run.parallel, **{"data": 1, "tensor": 1, "pipeline": 1} | layout)
    return replace(run, parallel=parallel, cluster=Cluster(workers=1), storage=str(folder))


@pytest.mark.parametrize("recipe", [dlrm_movielens, gpt_stdlib])
@pytest.mark.parametrize("dense", ["ddp", "zero"])
def test_losses_are_those_of_rounded_products(recipe: Any, dense: Any, tmp_path: Path) -> None:
    run = steady(run_of(recipe, tmp_path, dense=dense))
    whole = trace(run, steps=5).losses
    leave()
    rounded = trace(replace(run, parallel=replace(run.parallel, precision="bfloat16")), steps=5).losses
    assert all(a != b for a, b in zip(whole, rounded, strict=True))
    assert max(abs(a - b) for a, b in zip(whole, rounded, strict=True)) < LOSS_16_BITS


def test_what_is_kept_and_what_is_scored_is_float32(tmp_path: Path) -> None:
    """Rounded products reach no weight, gradient or moment but by their values, and no evaluation at all."""
    found: dict[str, Any] = {}
    for precision in ("float32", "bfloat16"):
        run = run_of(dlrm_movielens, tmp_path, precision=precision, dense="ddp")
        world = join(gpu=False, timeout_s=60)
        replica = Replica(run, lay_out(run.parallel, 1), world, stored=None, training=True)
        batch = next(iter(open_data(run).reader("train", global_batch=64, seed=0, rank=0, world_size=1)))[0]
        before = replica.predict(batch)
        watch = Stopwatch(world.device, sample_steps=0)
        loss = replica.forward_backward(batch, step=0, total_steps=9, watch=watch)
        gradients = dict(replica.gradients())
        replica.update(step=0, total_steps=9, watch=watch)
        kinds = {chunk.data.dtype for chunk in replica.chunks() if chunk.data.is_floating_point()}
        found[precision] = before, loss, gradients, kinds
        leave()
    (before, loss, gradients, kinds), (before16, loss16, gradients16, kinds16) = found.values()
    assert torch.equal(before, before16)
    assert loss16 != loss and loss16.dtype == torch.float32
    assert {g.dtype for g in gradients16.values()} == {torch.float32}
    assert any(not torch.equal(gradients[name], gradients16[name]) for name in gradients)
    assert kinds16 == kinds


@pytest.mark.parametrize(
    ("recipe", "precision", "said"),
    [
        (bpr_movielens, "bfloat16", "parallel.precision: 'bfloat16', but MF has no dense weights. Leave it out"),
        (gpt_stdlib, "tf32", "parallel.precision: 'tf32' is of NVIDIA's GPUs (cluster.gpus_per_worker 1)"),
    ],
)
def test_what_would_change_nothing_is_refused(recipe: Any, precision: Any, said: str, tmp_path: Path) -> None:
    run = run_of(recipe, tmp_path, precision=precision)
    with pytest.raises(ConfigError) as caught:
        refuse(run, lay_out(run.parallel, 1))
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(("precision", "kept"), [("tf32", "high"), ("float32", "highest"), ("bfloat16", "highest")])
def test_the_process_has_back_what_it_had(precision: Any, kept: str) -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with multiplied_as(precision):
            assert torch.get_float32_matmul_precision() == kept
            assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
