"""Pipeline parallelism: torch's own schedules over the pieces of a dense model."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
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
        loss: Callable[[Any, Tensor], Tensor],
    ):
        ranks, self.rank = groups.size("pipeline"), groups.index("pipeline")
        numbers = stages_of_ranks(schedule, ranks)
        self.modules, self.numbers = modules, numbers[self.rank]
        owners = {number: rank for rank, of in enumerate(numbers) for number in of}
        self.rank_of = [owners[number] for number in range(len(owners))]
        self.last = self.rank_of[-1] == self.rank
        self.loss, self.scale = loss, 1.0
        self.group: Any = groups.along["pipeline"]
        self.device = device
        stages = [
            PipelineStage(module, number, len(owners), device, group=self.group)
            for module, number in zip(modules, self.numbers, strict=True)
        ]
        self.microbatches = microbatches
        self.seen: list[dict[str, Tensor]] = []
        """Gradients of what stages were given by name, microbatch by microbatch: the same to each of this rank's."""
        for module, number in zip(modules, self.numbers, strict=True):
            if number + 1 < len(owners):
                module.register_forward_hook(_whole)
        if schedule.endswith("zero_bubble"):
            modules[0].register_forward_pre_hook(self._watch, with_kwargs=True)
        kind = ONE_STAGE.get(schedule) or MANY_STAGES[schedule]
        self.schedule: Any = kind(
            stages[0] if schedule in ONE_STAGE else stages, microbatches, loss_fn=self._scaled, scale_grads=False
        )

    def train(self, named: Mapping[str, Tensor], target: Tensor, scale: float) -> Tensor:
        """Gradients of `scale` times the batch's loss; returns the loss without `scale`, zero but on the last stage.

        `named`: what this rank's stages take, of the whole batch; its rows are a multiple of the microbatches.
        """
        self.scale = scale
        losses: list[Tensor] = []
        targets = {"target": target, "losses": losses} if self.last else {}
        self.seen.clear()
        self.schedule.step(**targets, return_outputs=False, **named)
        self._bring_to_leaves(named)
        if not losses:
            return torch.zeros((), device=target.device)
        return torch.stack([loss.detach() for loss in losses]).sum() / scale

    def _bring_to_leaves(self, named: Mapping[str, Tensor]) -> None:
        """Of zero-bubble schedules: they ask autograd for the gradients of a microbatch's inputs, and no further.

        So the part of `named` that a stage was given has a gradient, but the whole that it was cut from has none, or
        that of the model's first stage alone, whose backward is a whole one: all that was seen takes its place.
        """
        for name, leaf in named.items():
            if self.seen and leaf.requires_grad:
                # The first step begins with one call more, by which the schedule learns shapes.
                leaf.grad = torch.cat([parts[name] for parts in self.seen[-self.microbatches :]])

    @torch.no_grad()
    def outputs(self, named: Mapping[str, Tensor]) -> Any:
        """What the last stage gives, on the rank that has it, else none.

        Stage by stage, without a schedule: rows and lengths may be others each time, and while one rank is at its stage
        the rank before is at the next batch.
        """
        given: Any = ()
        for number, rank in enumerate(self.rank_of):
            if rank != self.rank:
                continue
            if number and self.rank_of[number - 1] != rank:
                given = self._receive(self.rank_of[number - 1])
            given = self.modules[self.numbers.index(number)](*given, **named)
            if number + 1 < len(self.rank_of):
                given = given if isinstance(given, tuple) else (given,)
                if self.rank_of[number + 1] != rank:
                    self._send(given, self.rank_of[number + 1])
        return given if self.last else None

    def _send(self, tensors: tuple[Tensor, ...], rank: int) -> None:
        shapes = [(tuple(x.shape), x.dtype) for x in tensors]
        dist.send_object_list([shapes], group=self.group, group_dst=rank, device=self.device)
        for tensor in tensors:
            dist.send(tensor.contiguous(), group=self.group, group_dst=rank)

    def _receive(self, rank: int) -> tuple[Tensor, ...]:
        header: list[Any] = [None]
        dist.recv_object_list(header, group=self.group, group_src=rank, device=self.device)
        tensors = tuple(torch.empty(shape, dtype=dtype, device=self.device) for shape, dtype in header[0])
        for tensor in tensors:
            dist.recv(tensor, group=self.group, group_src=rank)
        return tensors

    def _watch(self, _: nn.Module, given: Any, named: dict[str, Tensor]) -> None:
        gradients = {name: torch.zeros_like(part) for name, part in named.items() if part.requires_grad}
        for name, gradient in gradients.items():
            named[name].register_hook(partial(_add, gradient))
        self.seen.append(gradients)

    def _scaled(self, out: Any, target: Tensor) -> Tensor:
        return self.loss(out, target) * self.scale


def _whole(_: nn.Module, given: Any, output: Any) -> Any:
    """What goes to the next stage, in one piece and no view: torch sends nothing else, and detaches it in place."""
    if isinstance(output, tuple):
        return tuple(_whole(_, given, x) for x in output)
    sound = output.is_contiguous() and not output._is_view()
    return output if sound else output.clone(memory_format=torch.contiguous_format)


def _add(total: Tensor, gradient: Tensor) -> None:
    """As a hook it gives nothing back, so that the gradient goes on as it is."""
    total += gradient
