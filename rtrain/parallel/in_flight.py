"""How many microbatches a pipeline rank holds at a time: counted in the order that torch's schedules work in."""

from functools import cache
from types import SimpleNamespace
from typing import Any

from rtrain.mesh import ONE_STAGE_A_RANK, PipelineSchedule
from rtrain.parallel.stage import stages_of_ranks


def in_flight(schedule: PipelineSchedule, ranks: int, rank: int, microbatches: int) -> set[tuple[int, ...]]:
    """Of each of a rank's stages the microbatches whose forward is kept; all that there are at any time.

    Zero-bubble schedules part the backward, and of what a forward keeps torch 2.13 frees but a part before the step
    ends, so there every microbatch counts: a bound, 1.4 to 1.7 times what a tiny decoder held.
    """
    if schedule in ONE_STAGE_A_RANK:
        most = microbatches if schedule == "gpipe" else min(microbatches, ranks - rank)
        return {(count,) for count in range(most + 1)}
    if schedule != "interleaved_1f1b":
        return {(microbatches, microbatches)}
    held, found = dict.fromkeys(stages_of_ranks(schedule, ranks)[rank], 0), set[tuple[int, ...]]()
    for action in _order(ranks, microbatches)[rank]:
        if action is not None:
            held[action.stage_index] += 1 if action.computation_type.name == "FORWARD" else -1
            found.add(tuple(held.values()))
    return found


@cache
def _order(ranks: int, microbatches: int) -> Any:
    """What each rank does, one behind the other: the schedule's own, made of stages that are nothing but numbers."""
    from torch.distributed.pipelining.schedules import ScheduleInterleaved1F1B  # seconds to import

    numbers = stages_of_ranks("interleaved_1f1b", ranks)[0]
    stages: Any = [
        SimpleNamespace(stage_index=n, num_stages=2 * ranks, group_size=ranks, group_rank=0) for n in numbers
    ]
    return ScheduleInterleaved1F1B(stages, microbatches, loss_fn=len, scale_grads=False).pipeline_order
