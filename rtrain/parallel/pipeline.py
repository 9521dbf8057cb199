"""Pipeline parallelism: torch's own schedules over the pieces of a dense model.

Shape legend: B rows of this rank's batch, T tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)

from rtrain.mesh import PipelineSchedule
from rtrain.parallel.groups import Groups
from rtrain.parallel.stage import stages_of_ranks

ONE_STAGE: dict[str, Any] = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
MANY_STAGES: dict[str, Any] = {
    "interleaved_1f1b": ScheduleInterleaved1F1B,
    "interleaved_zero_bubble": ScheduleInterleavedZeroBubble,
    "zbv_zero_bubble": ScheduleZBVZeroBubble,
}


class Pipeline:
    """This rank's stages, run through microbatches by one of torch's schedules; a collective over the pipeline axis."""

    def __init__(
        self,
        modules: Sequence[nn.Module],
        schedule: PipelineSchedule,
        groups: Groups,
        device: torch.device,
        *,
        microbatches: int,
        loss: Callable[[Tensor, Tensor], Tensor],
    ):
        ranks = groups.size("pipeline")
        numbers = stages_of_ranks(schedule, ranks)
        mine = numbers[groups.index("pipeline")]
        count = sum(len(n) for n in numbers)
        self.first, self.last = 0 in mine, count - 1 in mine
        self.loss, self.scale = loss, 1.0
        group: Any = groups.along["pipeline"]
        stages = [PipelineStage(m, n, count, device, group=group) for m, n in zip(modules, mine, strict=True)]
        kind = ONE_STAGE.get(schedule) or MANY_STAGES[schedule]
        self.schedule: Any = kind(
            stages[0] if schedule in ONE_STAGE else stages, microbatches, loss_fn=self._scaled, scale_grads=False
        )
        self.forward_only = _forward_only(self.schedule) if schedule == "zbv_zero_bubble" else None

    def train(self, tokens_BT: Tensor, targets_BT: Tensor, scale: float) -> Tensor:
        """Gradients of `scale` times the batch's loss; returns the loss without `scale`, zero but on the last stage."""
        self.scale = scale
        return self._run(self.schedule.step, tokens_BT, targets_BT, return_outputs=False) / scale

    @torch.no_grad()
    def score(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """The batch's loss, zero but on the last stage."""
        self.scale = 1.0
        if self.forward_only is None:
            return self._run(self.schedule.eval, tokens_BT, targets_BT, return_outputs=False)
        trains = self.schedule.pipeline_order_with_comms
        self.schedule.pipeline_order_with_comms = self.forward_only
        try:
            return self._run(self.schedule.eval, tokens_BT, targets_BT, return_outputs=False)
        finally:
            self.schedule.pipeline_order_with_comms = trains

    def _run(self, work: Callable[..., Any], tokens_BT: Tensor, targets_BT: Tensor, **options: Any) -> Tensor:
        losses: list[Tensor] = []
        inputs = (tokens_BT,) if self.first else ()
        targets = {"target": targets_BT, "losses": losses} if self.last else {}
        work(*inputs, **targets, **options)
        if not losses:
            return torch.zeros((), device=tokens_BT.device)
        return torch.stack([loss.detach() for loss in losses]).sum()

    def _scaled(self, out: Tensor, targets: Tensor) -> Tensor:
        return self.loss(out, targets) * self.scale


def _forward_only(schedule: Any) -> dict[int, Any]:
    """A V schedule's order without its backward actions.

    torch's `eval` runs the order of training and lets each backward action do nothing. Where two stages that follow
    each other are on one rank, as at the foot of a V, it asks one of them for gradients all the same, and asserts
    (torch 2.13, `get_local_bwd_output`).
    """
    return {
        rank: [action for action in actions if action.computation_type.value in ("F", "SEND_F", "RECV_F")]
        for rank, actions in schedule.pipeline_order_with_comms.items()
    }
