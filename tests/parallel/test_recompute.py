"""`Parallel.recompute`: every layout trains to the bit as it does when it keeps its activations.

Losses, weights, moments, and the random state behind the last step; the models draw dropout masks. On CPU the same
kernels do the same sums in the same order, so equal means equal.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rtrain.data.tokens import Tokens, write_shards
from rtrain.duration import Duration
from rtrain.mesh import Parallel
from rtrain.metrics.language import TokenLoss
from rtrain.models.decoder import Decoder
from rtrain.models.sasrec import SASRec
from rtrain.optim import AdamW
from rtrain.parity import name_of, world_of
from rtrain.run import Evaluation, Handoff, Run
from rtrain.training.replica import Replica
from rtrain.training.trace import trace
from tests.parallel import test_retrieval as retrieval
from tests.parallel.worlds import in_world

STEPS = 4
PIPELINE: dict[str, Any] = {"data": 1, "pipeline": 2, "microbatches": 4}
LAYOUTS = {
    1: (Parallel(data=1, dense="ddp"),),
    2: (
        Parallel(data=2, dense="ddp"),
        *(Parallel(data=2, zero_stage=stage) for stage in (1, 2, 3)),  # type: ignore[arg-type]
        Parallel(data=1, tensor=2, dense="ddp"),
        Parallel(**PIPELINE, dense="ddp"),
    ),
}
MORE = {
    1: (Parallel(data=1, dense="ddp", precision="bfloat16"),),
    2: (
        Parallel(data=2, zero_stage=0, microbatches=2),
        Parallel(data=2, zero_stage=2, microbatches=2),
        Parallel(data=2, zero_stage=3, microbatches=2, precision="bfloat16"),
        Parallel(data=1, tensor=2, zero_stage=1, precision="bfloat16"),
        Parallel(**PIPELINE, zero_stage=3),
        Parallel(**PIPELINE, schedule="gpipe", zero_stage=1, precision="bfloat16"),
        Parallel(**PIPELINE, schedule="interleaved_1f1b", zero_stage=2),
    ),
    4: (
        Parallel(data=2, tensor=2, zero_stage=3),
        Parallel(data=1, tensor=2, pipeline=2, microbatches=2, dense="ddp"),
        Parallel(data=2, pipeline=2, microbatches=2, zero_stage=1),
    ),
}
Trained = tuple[list[float], dict[str, str], int]
"""Losses, what each rank holds (a digest a tensor), and how often pieces went forward."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("recompute")
    text = b"\0".join(path.read_bytes() for path in sorted(Path("rtrain").glob("*.py")))
    write_shards(iter([np.frombuffer(text, np.uint8)]), folder / "text", vocab=256, tokenizer="bytes")
    decoder = Run(
        name="recompute", model=Decoder(vocab=256, layers=4, dim=32, heads=4, kv_heads=2),
        data=Tokens(source=str(folder / "text"), context=32, valid=0.01, test=0.01),
        optim=AdamW(lr=3e-3, clip_norm=0.2), global_batch=16, duration=Duration(steps=STEPS),
        evaluation=Evaluation(monitor="loss"), metrics=(TokenLoss(),), handoff=Handoff(export=False),
    )  # fmt: skip
    log = retrieval.write_log(str(folder / "log.parquet"))
    sasrec = SASRec(dim=16, layers=2, heads=2, dropout=0.2, scale=0.1)
    items = retrieval.run_on(retrieval.histories(log), sasrec, Parallel(), retrieval.SPARSE["adagrad"])
    return {"decoder": decoder, "sasrec": items}


def parts_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeRO-3 keeps weights as small as these whole, and those that are soon used again: here it may not."""
    from rtrain.parallel import zero

    begin, small = (
        zero.deepspeed.initialize,
        ("param_persistence_threshold", "max_reuse_distance", "prefetch_bucket_size"),
    )

    def initialize(*, config: dict[str, Any], **others: Any) -> Any:
        optimization = config["zero_optimization"] | {f"stage3_{name}": 0 for name in small}
        return begin(config=config | {"zero_optimization": optimization}, **others)

    monkeypatch.setattr(zero.deepspeed, "initialize", initialize)


def trained(run: Run) -> Trained:
    kept: list[Replica] = []
    passes = 0
    of_zero_3 = run.parallel.dense == "zero" and run.parallel.zero_stage == 3

    def count(_: nn.Module, __: Any) -> None:
        nonlocal passes
        passes += 1

    def before(step: int, replica: Replica) -> None:
        if not kept:
            kept.append(replica)
            for stage in replica.modules if replica.pipeline else [replica.modules[0]]:
                for piece in stage.pieces:  # type: ignore[union-attr]
                    piece.register_forward_pre_hook(count)
        if of_zero_3:
            assert not any(p.numel() for p in replica.modules.parameters()), f"a weight is whole before step {step}"

    with pytest.MonkeyPatch.context() as patched:
        if of_zero_3:
            parts_all(patched)
        losses = trace(run, steps=STEPS, before_step=before).losses
    return losses, {f"{c.name} {c.offsets}": digest(c.data) for c in kept[0].chunks()}, passes


def digest(x: Tensor) -> str:
    return hashlib.sha256(x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def both(cases: dict[str, Run]) -> dict[str, tuple[Trained, Trained]]:
    return {
        name: (trained(run), trained(replace(run, parallel=replace(run.parallel, recompute="pieces"))))
        for name, run in cases.items()
    }


def cases(runs: dict[str, Run], layouts: tuple[Parallel, ...]) -> dict[str, Run]:
    return {
        f"{model} {name_of(layout)}": replace(run, parallel=layout) for model, run in runs.items() for layout in layouts
    }


def assert_equal(runs: dict[str, Run], layouts: dict[int, tuple[Parallel, ...]]) -> None:
    for world, of_world in layouts.items():
        assert all(world_of(layout) == world for layout in of_world)
        for rank, found in enumerate(in_world(world, both, cases(runs, of_world))):
            assert len(found) == len(runs) * len(of_world)
            for name, (plain, again) in found.items():
                assert again[0] == plain[0] and len(set(plain[0])) == STEPS, (name, rank, plain[0], again[0])
                assert again[1].keys() == plain[1].keys()
                wrong = [tensor for tensor, of in plain[1].items() if again[1][tensor] != of]
                assert not wrong, (name, rank, wrong)
                assert again[2] > 1.4 * plain[2], (name, rank, plain[2], again[2])


def test_every_layout_trains_to_the_bit_as_without(runs: dict[str, Run]) -> None:
    assert_equal(runs, LAYOUTS)


@pytest.mark.slow
def test_more_layouts_train_to_the_bit_as_without(runs: dict[str, Run]) -> None:
    assert_equal(runs, MORE)
