"""Batches that are on the device before a step wants them; what a GPU alone can show is marked, and skipped without."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rtrain
from rtrain.batch import Batch, Jagged, each
from rtrain.data.graph import Graph
from rtrain.data.retrieval_batch import RetrievalBatch
from rtrain.data.tokens import TokenBatch
from rtrain.nn.bags import Tables
from rtrain.nn.tables import Table
from rtrain.run import Run
from rtrain.training import job
from rtrain.training.ready import Copies, Sent, arrived
from tests.unit.training.jobs import losses, train

CPU = torch.device("cpu")
SLEEP = 200_000_000
"""Cycles, about 0.1 s: longer than all that a test sends meanwhile takes."""

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def ranking(seed: int = 0, rows: int = 64) -> Batch:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(0, 5, (3, rows)).astype(np.int32)
    lengths[0] = 1
    count = int(lengths.sum())
    return Batch(
        dense=torch.from_numpy(draw.normal(size=(rows, 4)).astype(np.float32)),
        ids=Jagged(
            ("user", "kinds", "seen"),
            torch.from_numpy(draw.integers(0, 9, count)),
            torch.from_numpy(lengths.ravel()),
            torch.ones(count),
        ),
        label=torch.zeros(rows),
        group=torch.arange(rows),
        row=torch.arange(rows) + 100 * seed,
        global_rows=rows,
        weight=torch.ones(rows),
        times={"seen": torch.zeros(rows, 5, dtype=torch.int64)},
    )


def retrieval() -> RetrievalBatch:
    graph = Graph(np.array([0, 1]), np.array([1, 0]), users=3, items=4)
    return RetrievalBatch(
        ids=Jagged(("user", "item"), torch.tensor([1, 2, 3, 0]), torch.ones(4, dtype=torch.int32)),
        target=torch.full((2, 1, 2), -1),
        row=torch.arange(2),
        last=torch.zeros(2, dtype=torch.int64),
        global_rows=2,
        units=2,
        places={"kind": torch.zeros(2, 3, dtype=torch.int64)},
        graph=graph.edges,
        items=np.arange(2),
    )


def tokens() -> TokenBatch:
    return TokenBatch(torch.arange(6).view(2, 3), torch.arange(6).view(2, 3) + 1, torch.arange(2), global_rows=2)


def tensors(of: Any) -> list[Tensor]:
    found: list[Tensor] = []
    each(of, lambda x: found.append(x) or x)  # type: ignore[func-returns-value]
    return found


def held(of: Any) -> Iterator[Tensor]:
    """Every tensor that is somewhere in it, found in another way."""
    if isinstance(of, Tensor):
        yield of
    elif isinstance(of, dict):
        for value in of.values():
            yield from held(value)
    elif is_dataclass(of):
        for at in fields(of):
            yield from held(getattr(of, at.name))


@pytest.mark.parametrize("batch", [ranking(), retrieval(), tokens()], ids=lambda batch: type(batch).__name__)
def test_on_a_cpu_a_batch_is_ready_as_it_is_made(batch: Any) -> None:
    assert Copies(CPU)(batch) is batch
    host, there = arrived(batch, CPU)
    assert host is batch and there is batch


@pytest.mark.parametrize("batch", [ranking(), retrieval(), tokens()], ids=lambda batch: type(batch).__name__)
def test_no_tensor_of_a_batch_is_left_behind(batch: Any) -> None:
    assert [id(x) for x in tensors(batch)] == [id(x) for x in held(batch)]
    twice = each(batch, lambda x: x.clone())
    assert not {id(x) for x in held(twice)} & {id(x) for x in held(batch)}
    for before, after in zip(held(batch), held(twice), strict=True):
        assert torch.equal(before.to_dense(), after.to_dense())


class Recorded(Copies):
    """Remembers what it was called for."""

    rows: list[Tensor]

    def __call__(self, batch: Any) -> Any:
        self.rows.append(batch.row)
        return super().__call__(batch)


def test_a_job_makes_all_that_it_trains_on_and_all_that_it_scores_ready(
    tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it reads ahead of a step changes neither its losses nor where it resumes."""
    straight = rtrain.override(tiny, {"name": "straight"})
    train(straight)
    monkeypatch.setattr(Recorded, "rows", [], raising=False)
    monkeypatch.setattr(job, "Copies", Recorded)
    train(rtrain.override(tiny, {"duration.steps": 13}))
    train(tiny)
    assert losses(tiny) == losses(straight)
    data = tiny.data.open()
    found = torch.cat(Recorded.rows).bincount(minlength=data.numbers("test").stop).tolist()
    times = {split: [found[n] for n in data.numbers(split)] for split in ("train", "valid", "test")}
    assert min(times["train"]) >= 3 and min(times["valid"]) >= 6 and min(times["test"]) >= 2
    assert times["test"][0] == 4, "scored twice, and twice its predictions are kept for a server"


@contextmanager
def no_waits() -> Iterator[None]:
    """What makes the host wait for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def in_a_thread(copies: Copies, batch: Any) -> Sent:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(copies(batch)))
    thread.start()
    thread.join(60)
    assert isinstance(found[0], Sent)
    return found[0]


@pytest.fixture
def gpu() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("batch", [ranking(), retrieval(), tokens()], ids=lambda batch: type(batch).__name__)
def test_a_batch_arrives_whole(batch: Any, gpu: torch.device) -> None:
    host, there = arrived(in_a_thread(Copies(gpu), batch), gpu)
    assert host is batch
    for before, after in zip(held(batch), held(there), strict=True):
        assert after.device == gpu and torch.equal(before.to_dense(), after.cpu().to_dense())


@pytest.mark.gpu
@needs_gpu
def test_neither_copy_nor_lookup_waits_for_the_device(gpu: torch.device) -> None:
    of: dict[str, Any] = {"rows": 9, "dim": 4}
    tables = (
        Table(name="seen", features=("seen",), sequences=("seen",), **of),
        Table(name="kinds", features=("kinds",), means=("kinds",), weighted=("kinds",), **of),
        Table(name="user", features=("user",), **of),
    )
    copies, model = Copies(gpu), Tables(tables, ("user", "kinds", "seen"), gpu)

    def step(seed: int) -> Any:
        _, there = arrived(in_a_thread(copies, ranking(seed)), gpu)
        padded = there.padded(70)
        return model(padded.ids), padded.ids.rows(3, 9), padded.target  # type: ignore[attr-defined]

    step(0)  # memory is pinned, and indices are put on the device, at the first
    with no_waits():
        torch.cuda._sleep(SLEEP)
        step(1)
        assert not torch.cuda.current_stream().query(), "the host is ahead of the device"


@pytest.mark.gpu
@needs_gpu
def test_a_step_waits_for_its_own_batch(gpu: torch.device) -> None:
    copies, batch = Copies(gpu), ranking(3)
    assert copies._stream is not None
    with torch.cuda.stream(copies._stream):
        torch.cuda._sleep(SLEEP)
    sent = copies(batch)
    assert isinstance(sent, Sent) and not sent.done.query(), "it is still under way"
    _, there = arrived(sent, gpu)
    assert torch.equal((there.row + 1).cpu(), batch.row + 1)


@pytest.mark.gpu
@needs_gpu
def test_memory_of_a_batch_is_not_filled_again_while_a_step_reads_it(gpu: torch.device) -> None:
    copies, batch = Copies(gpu), ranking(1, rows=4096)
    for seed in range(4):  # so that memory of both kinds is there to be taken again
        arrived(copies(ranking(seed, rows=4096)), gpu)
    torch.cuda.synchronize()
    _, there = arrived(copies(batch), gpu)
    torch.cuda._sleep(SLEEP)
    read = [x + 0 for x in tensors(there)]
    del there
    for seed in range(2, 8):
        copies(ranking(seed, rows=4096))
    for was, is_ in zip(tensors(batch), read, strict=True):
        assert torch.equal(was, is_.cpu())
