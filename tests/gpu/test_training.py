"""What a GPU trains is what the processor beside it trains: recipes, ZeRO, kernels and dtypes of tables, resume."""

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rtrain import SGD, Adagrad, Checkpoint, Cluster, Duration, Parallel, TableLayout, TableOptions
from rtrain.errors import RunFailed
from rtrain.parity import LOSS, LOSS_16_BITS, steady
from rtrain.run import Run
from rtrain.training.replica import Replica
from rtrain.training.trace import Trace, trace
from rtrain.training.world import leave
from tests.parallel.worlds import Tables, whole_tables
from tests.unit.training.jobs import At, losses, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
RECIPES = (
    "bpr_movielens",
    "dlrm_criteo",
    "dlrm_movielens",
    "gpt_stdlib",
    "hstu_movielens",
    "lightgcn_movielens",
    "mmoe_movielens",
    "sasrec_movielens",
    "two_tower_features_movielens",
    "two_tower_movielens",
)
STEPS = 20


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    yield
    leave()


def recipe(name: str, folder: Path, gpus: int = 1, **changes: Any) -> Run:
    """A recipe's debug run for one rank."""
    run: Run = importlib.import_module(f"recipes.{name}").debug()
    alone = replace(run.parallel, data=1, tensor=1, pipeline=1)
    cluster = Cluster(workers=1, gpus_per_worker=1 if gpus else 0)
    return replace(run, **{"parallel": alone, "cluster": cluster, "storage": str(folder)} | changes)


def on(gpus: int, run: Run, **options: Any) -> Trace:
    """The run's first steps, in a world of its own."""
    found = trace(
        replace(run, cluster=Cluster(workers=1, gpus_per_worker=1 if gpus else 0)), **{"steps": STEPS} | options
    )
    leave()
    return found


def far(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", RECIPES)
def test_a_gpu_trains_as_the_processor(name: str, tmp_path: Path) -> None:
    run = steady(recipe(name, tmp_path))
    cpu, gpu = on(0, run), on(1, run)
    assert cpu.losses[-1] != cpu.losses[0]
    assert far(gpu.losses, cpu.losses) < LOSS
    assert gpu.bytes_per_rank == cpu.bytes_per_rank


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zero_on_a_gpu_and_beside_it(stage: int, tmp_path: Path) -> None:
    """A run on CPU of a machine that has a GPU stays on the CPU, also in DeepSpeed, and after a run on the GPU."""
    run = steady(recipe("gpt_stdlib", tmp_path))
    plain = on(0, replace(run, parallel=Parallel(dense="ddp")))
    of_zero = replace(run, parallel=Parallel(dense="zero", zero_stage=stage, microbatches=2))
    assert far(on(1, of_zero).losses, plain.losses) < LOSS
    assert far(on(0, of_zero).losses, plain.losses) < LOSS


@pytest.mark.parametrize("sparse", ["rowwise", "adagrad", "sgd"])
def test_tables_in_the_hosts_memory(sparse: str, tmp_path: Path) -> None:
    """A GPU reads them through unified memory, or through a cache that is too small for what a batch looks up."""
    run = steady(recipe("dlrm_movielens", tmp_path))
    if sparse != "rowwise":
        run = replace(run, sparse_optim=SGD(lr=0.1) if sparse == "sgd" else Adagrad(lr=0.005, eps=1e-4))
    names = [table.name for table in run.blueprint.tables]
    fused = on(1, run).losses
    for options in (
        {"kernel": "fused_uvm"},
        {"kernel": "fused_uvm_caching"},
        {"kernel": "fused_uvm_caching", "cache_fraction": 0.05, "cache_policy": "lfu"},
    ):
        layouts = tuple(TableLayout(table=name, embeddings="table_wise", **options) for name in names)  # type: ignore[arg-type]
        found = on(1, replace(run, parallel=replace(run.parallel, tables=layouts)))
        assert far(found.losses, fused) < LOSS, options


@pytest.mark.parametrize("name", sorted({*RECIPES} - {"bpr_movielens", "lightgcn_movielens"}))  # no dense weights
@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_fewer_bits_of_a_product(precision: Any, name: str, tmp_path: Path) -> None:
    run = steady(recipe(name, tmp_path))
    whole, fewer = on(1, run), on(1, replace(run, parallel=replace(run.parallel, precision=precision)))
    assert far(fewer.losses, whole.losses) < LOSS_16_BITS
    assert not torch.backends.cuda.matmul.allow_tf32
    assert fewer.losses != whole.losses


def tables_after(run: Run, steps: int) -> tuple[Tables, Tables, list[float]]:
    """All tables before and after some steps on the GPU, and the losses."""
    kept: list[Tables] = []

    def before(step: int, replica: Replica) -> None:
        if step in (0, steps):
            kept.append(whole_tables(replica))

    found = on(1, run, steps=steps + 1, before_step=before)
    return kept[0], kept[1], found.losses


def test_sixteen_bits_round_up_as_often_as_it_takes(tmp_path: Path) -> None:
    """fbgemm's stochastic rounding: steps far below a last bit move a table as far as float32's, on the average.

    To the nearest, nothing would move at all.
    """
    run = replace(steady(recipe("dlrm_movielens", tmp_path)), sparse_optim=SGD(lr=0.3))
    names = [table.name for table in run.blueprint.tables]
    tables = tuple(TableOptions(table=name, dtype="float16") for name in names)
    began, in32, losses32 = tables_after(run, STEPS)
    began16, in16, losses16 = tables_after(replace(run, model=replace(run.model, tables=tables)), STEPS)  # type: ignore[type-var]
    along = whole = 0.0
    for name in began:
        moved = torch.tensor(in32[name]) - torch.tensor(began[name])
        start16, end16 = torch.tensor(began16[name]), torch.tensor(in16[name])
        assert end16.equal(end16.half().float()), name
        along += float((moved * (end16 - start16)).sum())
        whole += float((moved * moved).sum())
    print(f"moved {along / whole:.3f} as far as float32's")
    assert along / whole == pytest.approx(1, abs=0.1)
    assert far(losses16, losses32) < LOSS_16_BITS


@pytest.mark.parametrize("name", ["dlrm_movielens", "sasrec_movielens", "gpt_stdlib"])
def test_goes_on_bit_by_bit(name: str, tmp_path: Path) -> None:
    short = {"duration": Duration(steps=STEPS), "log_every_steps": 1, "checkpoint": Checkpoint(every=Duration(steps=8))}
    whole = recipe(name, tmp_path / "whole", **short)
    stopped = recipe(name, tmp_path / "stopped", **short)
    train(whole)
    with pytest.raises(RunFailed):
        train(stopped, callbacks=[At(12)])
    train(stopped)
    assert losses(stopped) == losses(whole)


@pytest.mark.parametrize("gpus", [(0, 1), (1, 0)])
def test_moves_between_processor_and_gpu(gpus: tuple[int, int], tmp_path: Path) -> None:
    short = {"duration": Duration(steps=STEPS), "log_every_steps": 1, "checkpoint": Checkpoint(every=Duration(steps=8))}
    run = steady(recipe("dlrm_movielens", tmp_path / "moved", gpus[0], **short))
    whole = replace(run, storage=str(tmp_path / "whole"))
    train(whole)
    with pytest.raises(RunFailed):
        train(run, callbacks=[At(12)])
    train(replace(run, cluster=Cluster(workers=1, gpus_per_worker=gpus[1])))  # type: ignore[arg-type]
    mine, theirs = losses(run), losses(whole)
    assert far([mine[step] for step in sorted(mine)], [theirs[step] for step in sorted(theirs)]) < LOSS
