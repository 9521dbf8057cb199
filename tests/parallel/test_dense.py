"""The decoder over data, tensor and pipeline ranks: a plain torch loop's losses, and jobs that move between layouts."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy, embedding, scaled_dot_product_attention, silu

from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored
from rtrain.data.cursor import Cursor
from rtrain.data.tokens import Tokens, write_shards
from rtrain.duration import Duration
from rtrain.errors import RunFailed
from rtrain.evaluation.scoring import measure, scan
from rtrain.mesh import Parallel, lay_out
from rtrain.metrics.language import Perplexity, TokenLoss
from rtrain.models.decoder import Decoder
from rtrain.optim import AdamW, Schedule
from rtrain.parity import LOSS, name_of, parity
from rtrain.run import Checkpoint, Evaluation, Run
from rtrain.training.agreement import open_data
from rtrain.training.breakdown import Stopwatch
from rtrain.training.events import Callback, State, TrainPoint
from rtrain.training.job import run_job
from rtrain.training.replica import Replica
from rtrain.training.world import join
from tests.parallel.worlds import in_world

MODEL = Decoder(vocab=256, layers=4, dim=32, heads=4, kv_heads=2)
LAYOUTS = (
    Parallel(data=1, zero_stage=0, microbatches=3),
    Parallel(data=1, zero_stage=3),
    Parallel(data=2, dense="ddp"),
    Parallel(data=2, zero_stage=2, microbatches=2),
    Parallel(data=1, tensor=2, zero_stage=0),
    Parallel(data=1, tensor=2, zero_stage=3),
    Parallel(data=1, pipeline=2, microbatches=4, dense="ddp"),
    Parallel(data=1, pipeline=2, microbatches=2, zero_stage=1, schedule="zbv_zero_bubble"),
    Parallel(data=1, pipeline=2, microbatches=4, zero_stage=2, schedule="interleaved_1f1b"),
    Parallel(data=2, tensor=2, zero_stage=1),
    Parallel(data=2, pipeline=2, microbatches=2, zero_stage=3),
    Parallel(data=1, tensor=2, pipeline=2, microbatches=2, zero_stage=1, schedule="gpipe"),
    Parallel(data=1, tensor=4, zero_stage=2),  # more ranks than key-value heads
)
STEPS = 24
MOVES = {  # world -> layout, and the step at which all ranks die
    4: (Parallel(tensor=2, zero_stage=1), 8),
    2: (Parallel(pipeline=2, microbatches=2, zero_stage=2), 17),
    1: (Parallel(dense="ddp"), None),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Real text, in batches that the ranks do not divide evenly; clipping is active from the first step."""
    folder = tmp_path_factory.mktemp("dense")
    text = b"\0".join(path.read_bytes() for path in sorted(Path("rtrain").rglob("*.py")))
    write_shards(iter([np.frombuffer(text, np.uint8)]), folder / "text", vocab=256, tokenizer="bytes")
    return Run(
        name="dense",
        model=MODEL,
        data=Tokens(source=str(folder / "text"), context=32, valid=0.01, test=0.01),
        optim=AdamW(lr=3e-3, clip_norm=0.2, weight_decay=0.1, schedule=Schedule(warmup_steps=5, decay="cosine")),
        global_batch=11,
        duration=Duration(steps=STEPS),
        log_every_steps=1,
        evaluation=Evaluation(every=Duration(steps=8), monitor="loss", batch=30),
        checkpoint=Checkpoint(every=Duration(steps=5), keep=9),
        metrics=(TokenLoss(), Perplexity()),
        storage=str(folder / "runs"),
    )


def scores(run: Run, layouts: tuple[Parallel, ...]) -> list[list[float]]:
    """Validation loss before and after a step of training, of each layout."""
    found = []
    for layout in layouts:
        mine = replace(run, parallel=layout)
        world = join(gpu=False, timeout_s=300)
        mesh, data = lay_out(layout, world.size), open_data(mine)
        replica = Replica(mine, mesh, world, stored=None, training=True)
        place = {"rank": mesh.coordinates(world.rank)["data"], "world_size": mesh.data}
        before = measure(replica, scan(mine, data, "valid", mesh, world.rank), mine.metrics)["loss"]
        batch = next(iter(data.reader("train", global_batch=mine.global_batch, seed=0, **place)))[0]
        replica.train_step(batch, step=0, total_steps=STEPS, watch=Stopwatch(world.device, sample_steps=0))
        after = measure(replica, scan(mine, data, "valid", mesh, world.rank), mine.metrics)["loss"]
        found.append([before, after])
    return found


def kind(layout: Parallel) -> tuple[bool, int, int]:
    """What it spreads over ranks, and how far."""
    return layout.data == 1, layout.tensor, layout.pipeline


def test_every_schedule_scores_as_one_process(run: Run) -> None:
    """torch's own `eval` fails on a V schedule; sums in another order are 1e-7 of a loss of 5.6."""
    schedules = ("gpipe", "1f1b", "interleaved_1f1b", "interleaved_zero_bubble", "zbv_zero_bubble")
    layouts = tuple(Parallel(data=1, pipeline=2, microbatches=4, schedule=s) for s in schedules)
    ((alone,),) = in_world(1, scores, run, (Parallel(data=1, dense="ddp"),))
    for schedule, found in zip(schedules, in_world(2, scores, run, layouts)[0], strict=True):
        assert found == pytest.approx(alone, abs=5e-6), schedule
    assert alone[1] < alone[0]


def test_every_layout_is_one_process(run: Run, seed: str) -> None:
    """A seed draws of each kind of layout one."""
    kinds = dict.fromkeys(map(kind, LAYOUTS))
    draw = random.Random(seed)
    layouts = [draw.choice([x for x in LAYOUTS if kind(x) == of]) for of in kinds] if seed else LAYOUTS
    found = parity(run, layouts=layouts, steps=12)
    assert [c.layout for c in found.layouts] == [name_of(x) for x in layouts] and not found.refused
    assert found.holds, str(found)
    assert all(c.max_grad_norm_diff is not None for c in found.layouts)


# The control: the same model and loop by hand, on the logical weights. ---------------------------------------------


def by_hand(config: Decoder, w: dict[str, Tensor], tokens_BT: Tensor) -> Tensor:
    """Logits, written with plain functions; shapes as in `rtrain.models.decoder`."""

    def norm(x: Tensor, name: str) -> Tensor:
        return torch.nn.functional.rms_norm(x, (config.dim,), w[f"{name}.weight"], config.norm_eps)

    def turned(x_BHTD: Tensor) -> Tensor:
        half = x_BHTD.shape[-1] // 2
        at = torch.arange(x_BHTD.shape[2])[:, None] * config.rope_theta ** (-torch.arange(half) / half)
        as_complex = torch.complex(x_BHTD[..., :half], x_BHTD[..., half:]) * torch.polar(torch.ones_like(at), at)
        return torch.cat((as_complex.real, as_complex.imag), dim=-1)

    x = embedding(tokens_BT, w["embed.tokens.weight"])
    rows, length = tokens_BT.shape
    for i in range(config.layers):
        b = f"blocks.{i}"
        h = norm(x, f"{b}.attention_norm")
        q, k, v = ((h @ w[f"{b}.attention.{n}.weight"].T).view(rows, length, -1, config.dim // config.heads) for n in
                   ("wq", "wk", "wv"))  # fmt: skip
        k, v = (y.repeat_interleave(config.heads // config.kv, dim=2) for y in (k, v))
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        seen = scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
        x = x + seen.transpose(1, 2).reshape(rows, length, -1) @ w[f"{b}.attention.wo.weight"].T
        h = norm(x, f"{b}.mlp_norm")
        gate, up = h @ w[f"{b}.mlp.w_gate.weight"].T, h @ w[f"{b}.mlp.w_up.weight"].T
        x = x + (silu(gate) * up) @ w[f"{b}.mlp.w_down.weight"].T
    return norm(x, "head.norm") @ w["head.out.weight"].T


def control(run: Run) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of a plain loop over the global batches, by one process without rtrain's replica."""
    world = join(gpu=False, timeout_s=60)
    replica: Any = Replica(run, lay_out(Parallel(), 1), world, stored=None, training=True)
    weights = {c.name.removeprefix("model."): c.data.clone().requires_grad_() for c in replica.chunks()
               if c.name.startswith("model.")}  # fmt: skip
    optim = run.optim
    adam = torch.optim.AdamW(weights.values(), lr=optim.lr, weight_decay=optim.weight_decay)
    reader = run.data.open().reader(global_batch=run.global_batch, seed=run.seed, rank=0, world_size=1, cursor=Cursor())
    losses, norms = [], []
    for step, (batch, _) in zip(range(STEPS), reader, strict=False):
        loss = cross_entropy(by_hand(MODEL, weights, batch.tokens).flatten(0, 1), batch.targets.flatten())
        adam.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(weights.values(), optim.clip_norm)))
        adam.param_groups[0]["lr"] = optim.lr * optim.schedule.factor(step, STEPS)
        adam.step()
        losses.append(float(loss.detach()))
    return losses, norms


class Dies(Callback):
    def __init__(self, at: int | None):
        self.at = at
        self.points: dict[int, TrainPoint] = {}

    def step_end(self, state: State, point: TrainPoint | None) -> None:
        if point is not None:
            self.points[state.step] = point
        if state.step == self.at:
            raise RuntimeError("on purpose")


def train_part(run: Run, until: int | None) -> dict[str, Any]:
    callback = Dies(until)
    found: dict[str, Any] = {"test": None}
    try:
        outcome = run_job(run, join(gpu=False, timeout_s=60), [callback])
        found |= {"test": outcome.test, "valid": outcome.valid}
    except RunFailed as error:
        assert "on purpose" in str(error), error
    found["losses"] = {s: p.loss for s, p in callback.points.items()}
    return found | {"norms": {s: p.grad_norm for s, p in callback.points.items()}}


def everything(run: Run) -> dict[str, Any]:
    layout, until = MOVES[dist.get_world_size()]
    found = {"moving": train_part(replace(run, name="moving", parallel=layout), until)}
    if until is None:
        found["still"] = train_part(replace(run, name="still", parallel=layout), None)
        found["control"] = control(run)  # type: ignore[assignment]
    return found


@pytest.fixture(scope="module")
def found(run: Run) -> Iterator[dict[int, list[dict[str, Any]]]]:
    yield {size: in_world(size, everything, run) for size in MOVES}


def test_one_process_is_the_loop_by_hand(found: Any) -> None:
    losses, norms = found[1][0]["control"]
    still = found[1][0]["still"]
    assert min(norms) > 0.2, "clipping is active in every step"
    assert list(still["losses"].values()) == pytest.approx(losses, abs=LOSS)
    assert list(still["norms"].values()) == pytest.approx(norms, rel=5e-4)
    assert losses[-1] < losses[0] - 1


def test_a_job_that_moves_between_layouts_is_the_job_that_stays(found: Any, run: Run) -> None:
    still = found[1][0]["still"]
    for size, begins in {
        4: 1,
        2: 6,
        1: 17,
    }.items():  # behind the newest: every five steps, and the best score
        part = found[size][0]["moving"]
        assert [rank["moving"]["losses"] for rank in found[size]] == [part["losses"]] * size
        assert [int(s) for s in part["losses"]] == list(range(begins, (MOVES[size][1] or STEPS) + 1))
        for step, loss in part["losses"].items():
            assert loss == pytest.approx(still["losses"][step], abs=LOSS), f"world {size}, step {step}"
    assert found[1][0]["moving"]["test"] == pytest.approx(still["test"], rel=LOSS)
    stored = Stored(CheckpointFolders(f"{run.storage}/moving").of(5), 5)
    assert stored.meta["axes"] == {"pipeline": 1, "data": 2, "tensor": 2}
    assert {n for n in stored.names("model.")} == {n.replace("optim.", "model.").removesuffix(".exp_avg") for n in
                                                    stored.names("optim.") if n.endswith(".exp_avg")}  # fmt: skip
    assert still["losses"]["1"] == pytest.approx(np.log(256), abs=0.1)
