"""What goes between a pipeline's ranks for the tables: no more bytes than need be, and however it lies in memory."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from rtrain.mesh import Parallel
from rtrain.parallel import carry
from rtrain.training.replica import Replica
from rtrain.training.trace import trace
from tests.parallel import test_retrieval as retrieval
from tests.parallel import users_model
from tests.parallel.plain import apart, plain_rows, squared_entropy
from tests.parallel.proved import PARITY, SPARSE
from tests.parallel.worlds import Tables, in_world, tiny, train, whole_tables

log = retrieval.log


def count_bytes(log: str) -> tuple[int, int]:
    """Sent by this rank in a step, and what the vectors that its pipeline reads take."""
    sent = 0

    class Counting:
        @staticmethod
        def gather(mine: torch.Tensor, parts: Any, *, group: Any, group_dst: int) -> None:
            nonlocal sent
            sent += 0 if parts else mine.nbytes
            dist.gather(mine, parts, group=group, group_dst=group_dst)

        @staticmethod
        def scatter(mine: torch.Tensor, parts: Any, *, group: Any, group_src: int) -> None:
            nonlocal sent
            sent += sum(part.nbytes for part in parts[1:]) if parts else 0
            dist.scatter(mine, parts, group=group, group_src=group_src)

    run = retrieval.run_of("sasrec", Parallel(pipeline=2, microbatches=2, embeddings="row_wise"), "sgd", log)
    whole = 0

    def before(step: int, replica: Replica) -> None:
        nonlocal whole
        carry.dist = Counting  # type: ignore[assignment,misc]
        longest = run.blueprint.longest
        rows = replica._rows_of_step(None)
        whole = rows * (longest["history"] + longest["item"]) * 16 * 4
        whole += rows * longest["history"]  # a byte says whether it is real: half of them to each stage, none back

    try:
        trace(run, steps=1, before_step=before)
    finally:
        carry.dist = dist
    return sent, whole


def test_a_step_moves_each_vector_once_there_and_its_gradient_once_back(log: str) -> None:
    """2 (p - 1) / p of the vectors' bytes over p stages' ranks, history and candidates: what cannot be spared; and
    (p - 1) / p of the bytes that say which of the history are real, to each of p stages, whose blocks leave out others.
    """
    ranks = in_world(2, count_bytes, log)
    whole = ranks[0][1]
    assert whole > 0 and sum(sent for sent, _ in ranks) == whole  # p = 2


class Turned(users_model.Block):
    """Gives what lies column by column, and is no view of anything."""

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        x = super().forward(*given)
        return -x.T.contiguous().T if x.dim() == 2 else x


CONFIG = users_model.Blocks(dim=16)


def train_turned(layouts: list[Parallel], rows: str) -> list[tuple[list[float], Tables]]:
    users_model.Block = Turned  # type: ignore[misc]
    found = []
    for layout in layouts:
        kept: dict[int, Replica] = {}
        losses = train(tiny(rows, layout, SPARSE["sgd"], config=CONFIG), before_step=kept.__setitem__)
        found.append((losses, whole_tables(kept[0])))
    return found


def test_what_a_stage_gives_may_lie_anyhow(rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch sends what lies row by row alone. Views, which its zero bubble cannot detach, every pooled model gives."""
    layout = Parallel(data=1, pipeline=2, microbatches=2, dense="ddp", embeddings="row_wise")
    schedules = ("1f1b", "zbv_zero_bubble")
    trained_so = in_world(2, train_turned, [replace(layout, schedule=x) for x in schedules], rows)[0]
    monkeypatch.setattr(users_model, "Block", Turned)
    by_hand = plain_rows(tiny(rows, Parallel(dense="ddp"), SPARSE["sgd"], config=CONFIG), squared_entropy)
    worst = {schedule: apart(found, by_hand) for schedule, found in zip(schedules, trained_so, strict=True)}
    assert all(max(pair) < PARITY for pair in worst.values()), worst
