"""How long a device takes for one microbatch's pass through pieces of a model: the roofline model, kernel by kernel.

See Williams, Waterman & Patterson, "Roofline" (2009): a kernel takes as long as its FLOPs, or as its bytes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Literal

from rtrain.mesh import Precision
from rtrain.outlook import collectives
from rtrain.outlook.collectives import Group
from rtrain.outlook.flops import BACKWARD, Counted, Kernel
from rtrain.outlook.profile import Profile


@dataclass(frozen=True, kw_only=True)
class Practice:
    """What a trainer does otherwise than the formulas' first guess; the defaults are rtrain's own practice."""

    recomputed: float = 0.0
    """Of the forward pass, what backward does again: 1 of checkpointed activations. rtrain keeps all."""
    fused: float = 1.0
    """Bytes and kernels without a product that are left: 1 of eager PyTorch, less of compiled code."""
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
    counted: Counted, profile: Profile, precision: Precision, tensor: Group, practice: Practice
) -> tuple[Pass, Pass]:
    """Forward and backward of one piece. Backward is twice the forward pass, in FLOPs, bytes, kernels and collectives.

    Raises:
        ConfigError: the device has no such precision.
    """
    compute = memory = asked = 0.0
    for kernel in counted.kernels:
        left = practice.fused if kernel.kind == "other" else 1.0
        asked += left
        by_flops = _by_flops_s(kernel, profile, precision, practice)
        by_bytes = left * kernel.bytes / (profile.memory_bandwidth * profile.memory_efficiency)
        if by_flops > by_bytes:
            compute += by_flops
        else:
            memory += by_bytes
    asked *= profile.launch_s
    host = max(0.0, asked - compute - memory)
    exchanged = sum(_exchange_s(kind, size, tensor, profile) for kind, size in counted.exchanged)
    waits = exchanged * (1 - practice.tensor_hidden)
    forward = Pass(compute=compute, memory=memory, host=host, tensor=waits, asked=asked)
    # What is gathered on the way in is scattered on the way back, and the other way round: as many bytes once.
    computed = replace(forward, tensor=0.0).times(BACKWARD + practice.recomputed)
    back = Pass(tensor=forward.tensor * (1 + practice.recomputed))
    return forward, add((computed, back))


def _by_flops_s(kernel: Kernel, profile: Profile, precision: Precision, practice: Practice) -> float:
    if not kernel.flops:
        return 0.0
    of_float32 = "tf32" if precision == "tf32" else "float32"
    named = "bfloat16" if kernel.bfloat16 else of_float32
    if kernel.kind == "product" and kernel.bfloat16 and practice.products:
        named = practice.products
    reached = profile.efficiency_of((kernel.flops / 2) ** (1 / 3))
    if kernel.kind == "attention":
        reached = min(reached, profile.attention_efficiency)
    return kernel.flops / (profile.peak(named) * reached)


def _exchange_s(kind: str, size: int, tensor: Group, profile: Profile) -> float:
    of = {
        "gather": collectives.all_gather_s,
        "scatter": collectives.reduce_scatter_s,
        "reduce": collectives.all_reduce_s,
    }
    return of[kind](size, tensor, profile)
