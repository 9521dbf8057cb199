"""Models that are as good as any until they are served: what a canary is there for."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from ray import serve as ray_serve
from ray.serve.exceptions import RayServeException

from rtrain.models.dlrm import DLRM


def served() -> bool:
    """Whether this process is a replica."""
    try:
        ray_serve.get_replica_context()
    except RayServeException:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class Planted(DLRM):
    sleeps_s: float = 0.0
    leaks_mb: int = 0
    crashes: bool = False
    errs: bool = False
    says_nan: bool = False
    turns_round: bool = False
    loses_gpu: int = 0
    """Requests until all others of the process have an error of CUDA's; 0: never."""

    def build(self, *given: Any, **options: Any) -> Any:
        model = super().build(*given, **options)
        if served():
            if self.crashes:
                raise RuntimeError("it does not load where it is served")
            kept: list[torch.Tensor] = []

            def before(*_: Any) -> None:
                time.sleep(self.sleeps_s)
                kept.append(torch.ones(self.leaks_mb * 250_000))
                if 0 < self.loses_gpu < len(kept):
                    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
                if self.errs:
                    raise RuntimeError("it errs where it is served")

            model.register_forward_pre_hook(before)
            if self.turns_round:
                model.register_forward_hook(lambda module, given, said: -said)
            if self.says_nan:
                model.register_forward_hook(lambda module, given, said: said * float("nan"))
        return model
