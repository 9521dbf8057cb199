"""What a job writes into its folder beside the checkpoints: placement, predictions, trackers' points."""

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch.distributed as dist

from rtrain.checkpoint.fence import Attempt
from rtrain.data.reader import Ready
from rtrain.data.samples import Samples
from rtrain.evaluation.scoring import scan
from rtrain.mesh import Mesh
from rtrain.run import Run
from rtrain.storage import Folder
from rtrain.tracking import Tracker
from rtrain.training.events import Callback, State, TrainPoint
from rtrain.training.ready import arrived
from rtrain.training.replica import Replica

PREDICTIONS = "predictions.json"
PLACEMENT = "placement.json"
CURVES = "curves.json"
"""ROC, calibration and score distribution of the test split, by label: `rtrain.metrics.shape`."""


class TrackerCalls(Callback):
    """Hands the loop's points to the trackers."""

    def __init__(
        self, trackers: Sequence[Tracker], *, overtaken: Callable[[], bool] = lambda: False, every_s: float = 2.0
    ):
        """`overtaken`: whether another attempt writes the run by now, whose curves these would mix with.

        It lists storage, so it is asked at most every `every_s` seconds.
        """
        self.trackers, self.overtaken = trackers, overtaken
        self.every_s, self.asked, self.silent = every_s, -math.inf, False

    def step_end(self, state: State, point: TrainPoint | None) -> None:
        """A training point."""
        if point is not None:
            values = {"train/loss": point.loss, "train/examples_per_s": point.examples_per_s, "train/lr": point.lr}
            if point.grad_norm is not None:
                values["train/grad_norm"] = point.grad_norm
            self._log(state.step, values)

    def evaluated(self, state: State, values: Mapping[str, float]) -> None:
        """A validation point."""
        self._log(state.step, {f"valid/{k}": v for k, v in values.items()})

    def saving(self, state: State) -> None:
        """A resume from the checkpoint that follows logs none of these steps again."""
        for tracker in self.trackers:
            tracker.flush()

    def fit_end(self, state: State) -> None:
        """The summary; the trackers are done with."""
        for tracker in self.trackers:
            tracker.finish({f"best/{k}": v for k, v in state.best.items()})
        self.trackers = ()

    def close(self) -> None:
        """Flush what an attempt that failed has logged; nothing is left to do after `fit_end`."""
        for tracker in self.trackers:
            tracker.close()

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        now = time.monotonic()
        if self.trackers and now - self.asked >= self.every_s:
            self.asked, self.silent = now, self.overtaken()
        if self.silent:
            return
        for tracker in self.trackers:
            tracker.log(step, values)


def write_placement(folder: Folder, mesh: Mesh, replica: Replica, attempt: Attempt | None) -> None:
    """placement.json: who sits where, which table lies where. A collective over all ranks.

    `attempt`, on rank 0: one that was overtaken leaves the file alone; the next save tells all ranks.
    """
    world = replica.world
    me = {
        "rank": world.rank,
        "node": world.node,
        "pid": os.getpid(),
        "device": str(world.device),
        "coordinates": mesh.coordinates(world.rank),
    }
    ranks: list[Any] = [None] * world.size
    dist.all_gather_object(ranks, me)
    if attempt and not attempt.overtaken:
        folder.write_json(
            PLACEMENT,
            {
                "world_size": world.size,
                "axes": asdict(mesh),
                "ranks": ranks,
                "tables": [p.to_json() for p in replica.placements],
                "bytes_per_rank": replica.bytes_per_rank(),
            },
        )


def write_predictions(
    run: Run, dataset: Samples[Any], replica: Replica, folder: Folder, attempt: Attempt | None, ready: Ready
) -> None:
    """predictions.json: the trainer's own probabilities of the first test rows (of several labels, a list a row).

    Of a language model the loss of each row, in nats, summed over its tokens.

    A collective over all ranks. `attempt` as in `write_placement`, `ready` as for `Samples.reader`.
    """
    rows = min(run.handoff.rows, dataset.rows("test"))
    local: dict[int, float | list[float]] = {}
    covered = 0
    for given in scan(run, dataset, "test", replica.mesh, replica.world.rank, ready):
        batch, there = arrived(given, replica.world.device)
        said = replica.predict(there) if replica.objective.link else replica.losses(there)
        if said is not None:
            local |= dict(zip(batch.row.tolist(), said.tolist(), strict=True))
        covered += batch.global_rows
        if covered >= rows:
            break
    parts: list[dict[int, float | list[float]]] = [{}] * replica.world.size
    dist.all_gather_object(parts, local)
    if attempt and not attempt.overtaken:
        everything = {row: p for part in parts for row, p in part.items()}
        first = sorted(everything)[:rows]
        predictions = {"rows": first, "predictions": [everything[r] for r in first]}
        folder.write(PREDICTIONS, json.dumps(predictions).encode())
