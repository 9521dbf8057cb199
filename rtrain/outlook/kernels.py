"""How long a device takes for one microbatch's pass through pieces of a model: the roofline model, kernel by kernel.

See Williams, Waterman & Patterson, "Roofline" (2009): a kernel takes as long as its FLOPs, or as its bytes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Literal

from rtrain.mesh import Precision
from rtrain.outlook import collectives
from rtrain.outlook.collectives import Group
from rtrain.outlook.flops import ATTENTION_BACKWARD, BACKWARD, Counted, Kernel
from rtrain.outlook.profile import Profile


@dataclass(frozen=True, kw_only=True)
class Practice:
    """What a trainer does otherwise than the formulas' first guess; the defaults are rtrain's own practice."""

    recomputed: float = 0.0
    """Of the blocks' products and tensor ranks' collectives, what backward does again: 1 of checkpointed activations.
    Blocks are pieces that a model has several of, or its only one; the others are done once. What a run's own
    `Parallel.recompute` does again is counted without it."""
    recomputed_attention: float = 0.0
    """Of the blocks' attention, as `recomputed`."""
    recomputed_others: float = 0.0
    """Of the blocks' other kernels, as `recomputed`."""
    fused: float = 1.0
    """Of the blocks' kernels without a product, and their bytes, what is left: 1 of eager PyTorch, less of compiled
    code."""
    head_dim: int = 0
    """Of attention without a fused kernel, whose scores lie in memory: the width of a head."""
    gathers: float = 1.0
    """Of the bytes that tensor ranks gather, what travels: half where they are of 8 bits."""
    chunks: int = 1
    """Of a pipeline of schedule 1f1b, stages that a rank has of each of its microbatches, interleaved: they divide the
    bubble."""
    even: bool = False
    """Whether every data rank reads as many rows; rtrain deals some ranks a few more, unless they are a power of 2."""
    graphs: bool = False
    """Whether the host asks for a whole step at once, and nothing waits for it."""
    gathered_bytes: float = 4.0
    """Of a weight, where ZeRO-3 gathers it."""
    reduced_bytes: float = 4.0
    """Of a gradient, where data ranks sum it."""
    hides: Literal["as rtrain", "all"] = "as rtrain"
    """What runs beside computing: see `rtrain.outlook.parts.data_s`."""
    tensor_hidden: float = 0.0
    """Of the tensor ranks' collectives the part that runs beside products."""
    products: str = ""
    """Precision of products of 16 bits, where that is another: float8."""


RTRAINS = Practice()
START_S = 2e-6
"""In which a kernel of a GPU starts and ends, however little it does: a stated assumption. Of products the profile's
efficiency has it."""
SCORES_BYTES = 9
"""That kernels between the two products of attention move for each pair of tokens and head, where none is fused: a
softmax of 16 bits reads and writes it, a dropout reads it, writes it and a mask."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Seconds of one microbatch's pass through consecutive pieces, on one device."""

    compute: float = 0.0
    """Kernels that their FLOPs bound."""
    memory: float = 0.0
    """Kernels that their bytes bound."""
    host: float = 0.0
    """That the device waits for the host, which asks for one kernel after the other."""
    tensor: float = 0.0
    """Collectives of tensor ranks."""
    asked: float = 0.0
    """What the host takes to ask for the kernels; no part of `seconds`, since the device works meanwhile."""

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.compute + self.memory + self.host + self.tensor

    def times(self, factor: float) -> "Pass":
        """So many of it, one behind the other."""
        return Pass(**{f.name: getattr(self, f.name) * factor for f in fields(self)})


def add(passes: Iterable[Pass]) -> Pass:
    """One behind the other."""
    all_of = list(passes)
    return Pass(**{f.name: sum(getattr(one, f.name) for one in all_of) for f in fields(Pass)})


def pass_of(
    counted: Counted, profile: Profile, precision: Precision, tensor: Group, practice: Practice, *, block: bool = True,
    again: bool = False,
) -> tuple[Pass, Pass]:  # fmt: skip
    """Forward and backward of one piece; `block`: whether the model has several of it; `again`: whether backward does
    its whole forward pass again, as `Parallel.recompute` says, whatever the practice is.

    Backward is twice the forward pass, in FLOPs, bytes, kernels and collectives; of attention 2.5 times, of vectors
    spread along edges once.

    Raises:
        ConfigError: the device has no such precision.
    """
    if not block:
        practice = replace(practice, recomputed=0, recomputed_attention=0, recomputed_others=0, fused=1, products="")
    if again:
        practice = replace(practice, recomputed=1, recomputed_attention=1, recomputed_others=1)
    forward, backward = _Sum(), _Sum()
    for kernel in counted.kernels:
        times, flops = _backward(kernel, practice)
        by_flops, by_bytes = _seconds(kernel, profile, precision, practice)
        asked = _left(kernel, practice)
        forward.take(by_flops, by_bytes, asked)
        backward.take(by_flops * flops, by_bytes * times, asked * times)
    exchanged = sum(_exchange_s(kind, size, tensor, profile, practice) for kind, size in counted.exchanged)
    waits = exchanged * (1 - practice.tensor_hidden)
    launch_s = 0.0 if practice.graphs else profile.launch_s
    # What is gathered on the way in is scattered on the way back, and the other way round: as many bytes once.
    return forward.to_pass(launch_s, waits), backward.to_pass(launch_s, waits * (1 + practice.recomputed))


class _Sum:
    """Kernels one behind the other."""

    def __init__(self) -> None:
        self.compute = self.memory = self.asked = 0.0

    def take(self, by_flops: float, by_bytes: float, asked: float) -> None:
        """One more, which takes as long as its FLOPs or its bytes; `asked`: for how many kernels the host asks."""
        self.asked += asked
        if by_flops > by_bytes:
            self.compute += by_flops
        else:
            self.memory += by_bytes

    def to_pass(self, launch_s: float, tensor_s: float) -> Pass:
        """The device waits for what the host has not asked for yet."""
        asked = self.asked * launch_s
        host = max(0.0, asked - self.compute - self.memory)
        return Pass(compute=self.compute, memory=self.memory, host=host, tensor=tensor_s, asked=asked)


def _backward(kernel: Kernel, practice: Practice) -> tuple[float, float]:
    """Times the forward pass in bytes and kernels, and in FLOPs."""
    if kernel.kind == "attention":
        flops = BACKWARD if practice.head_dim else ATTENTION_BACKWARD
        return BACKWARD + practice.recomputed_attention, flops + practice.recomputed_attention
    again = practice.recomputed if kernel.kind == "product" else practice.recomputed_others
    times = (1 if kernel.kind == "spread" else BACKWARD) + again
    return times, times


def _seconds(kernel: Kernel, profile: Profile, precision: Precision, practice: Practice) -> tuple[float, float]:
    """By its FLOPs, and by its bytes."""
    bandwidth = profile.memory_bandwidth * profile.memory_efficiency
    start_s = START_S if profile.accelerator else 0.0
    by_bytes = _left(kernel, practice) * (kernel.bytes / bandwidth + start_s)
    if kernel.kind != "attention":
        return _product_s(kernel, profile, precision, practice), by_bytes
    if not practice.head_dim:
        return _attention_s(kernel, profile, precision), by_bytes
    scores = kernel.model_flops / (4 * practice.head_dim)  # two products of as many multiplications for each
    peak = profile.peak(_named(kernel, precision))
    products = kernel.model_flops / (peak * profile.efficiency_of((kernel.model_flops / 4) ** (1 / 3)))
    # Each product writes or reads the scores; they and what lies between go one behind the other.
    return max(products, 4 * scores / bandwidth) + SCORES_BYTES * scores / bandwidth, 0.0


def _left(kernel: Kernel, practice: Practice) -> float:
    """Of one kernel, after fusing."""
    return practice.fused if kernel.kind == "other" else 1.0


def _named(kernel: Kernel, precision: Precision) -> str:
    of_float32 = "tf32" if precision == "tf32" else "float32"
    return "bfloat16" if kernel.bfloat16 else of_float32


def _product_s(kernel: Kernel, profile: Profile, precision: Precision, practice: Practice) -> float:
    if not kernel.flops:
        return 0.0
    named = practice.products if kernel.bfloat16 and practice.products else _named(kernel, precision)
    return kernel.flops / (profile.peak(named) * profile.efficiency_of(kernel.size))


def _attention_s(kernel: Kernel, profile: Profile, precision: Precision) -> float:
    """FlashAttention takes no float32: on a GPU torch's memory-efficient kernel does those, each product as three of
    tf32 (`cutlass::arch::OpMultiplyAddFastF32`)."""
    three = profile.accelerator and not kernel.bfloat16
    peak = profile.peak("tf32") / 3 if three else profile.peak(_named(kernel, precision))
    reached = profile.efficiency_of((kernel.flops / 2) ** (1 / 3))
    return kernel.flops / (peak * min(reached, profile.attention_efficiency))


def _exchange_s(kind: str, size: int, tensor: Group, profile: Profile, practice: Practice) -> float:
    of = {
        "gather": collectives.all_gather_s,
        "scatter": collectives.reduce_scatter_s,
        "reduce": collectives.all_reduce_s,
    }
    return of[kind](size * (practice.gathers if kind == "gather" else 1.0), tensor, profile)
