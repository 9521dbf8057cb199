"""The dense tower under DeepSpeed ZeRO. With `extension` the only file of rtrain that imports deepspeed.

DeepSpeed owns the partitioning, rtrain owns the layout and the checkpoint: state leaves and enters
as whole logical tensors through DeepSpeed's `safe_get/set_full_*` calls, so any stage reads any other.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn

from rtrain.optim import AdamW
from rtrain.parallel import extension
from rtrain.parallel.chunks import Chunk, Place, ReadChunk
from rtrain.parallel.clip import clip_global_norm
from rtrain.parallel.groups import Groups

# Read by DeepSpeed when it is imported: without it, it probes for accelerators and says so.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
from deepspeed.runtime.zero.partition_parameters import Init
from deepspeed.utils import groups as deepspeed_groups
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_grad,
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
)
from deepspeed.utils.logging import logger as deepspeed_logger

SLOTS = ("exp_avg", "exp_avg_sq")
BUCKET = 500_000_000
"""Elements that are reduced together at most; DeepSpeed's default."""


class _ModelParallelUnit:
    """The mesh as DeepSpeed asks for it: its ZeRO partitions over the data axis, its norms add up over a replica.

    The "model parallel rank" decides who counts a replicated parameter, so it is the tensor rank only.
    """

    def __init__(self, groups: Groups):
        self.groups = groups

    def get_data_parallel_group(self) -> Any:
        return self.groups.along["data"]

    def get_data_parallel_group_ranks(self) -> list[int]:
        return self.groups.ranks("data")

    def get_data_parallel_rank(self) -> int:
        return self.groups.index("data")

    def get_data_parallel_world_size(self) -> int:
        return self.groups.size("data")

    def get_model_parallel_group(self) -> Any:
        return self.groups.replica

    def get_model_parallel_rank(self) -> int:
        return self.groups.index("tensor")

    def get_model_parallel_world_size(self) -> int:
        return self.groups.size("tensor") * self.groups.size("pipeline")

    def get_pipeline_model_parallel_rank(self) -> int:
        return self.groups.index("pipeline")

    def get_pipeline_model_parallel_world_size(self) -> int:
        return self.groups.size("pipeline")


class _Box(nn.Module):
    """Holds a module without ever calling it as the top one: ZeRO-3 would broadcast over the whole world then."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.inside = module


class ZeroTower:
    """See `rtrain.parallel.tower.Tower`; stages 0 to 3 over the data ranks."""

    def __init__(
        self,
        tower: nn.Module,
        places: Mapping[str, Place],
        stage: int,
        optim: AdamW,
        groups: Groups,
        device: torch.device,
        *,
        rows_per_microbatch: int,
    ):
        deepspeed_logger.setLevel(logging.WARNING)
        self.stage = stage
        self.clip_norm = optim.clip_norm
        self.places, self.group_of = places, groups
        self.bare = tower.to(device)
        if not torch.distributed.is_initialized():
            raise RuntimeError("a process group comes first: see rtrain.launch")
        # Of this process's run before this one, in which the ranks may have had stages of different lengths: parameters
        # and modules are counted on, and stage 3 holds the numbers against those of other ranks.
        deepspeed_groups._release_process_group_references()
        Init.param_id = 0
        DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0
        os.environ.setdefault("LOCAL_RANK", "0")  # a world of one has no launcher to set it, and DeepSpeed insists
        elements = sum(p.numel() for p in self.bare.parameters())
        for name, parameter in self.bare.named_parameters():
            if places[name].sizes != places[name].shape:
                parameter.model_parallel = parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
        extension.load(device)
        with redirect_stdout(StringIO()):  # it prints that it has loaded what was built before
            self._initialise(stage, optim, groups, elements, rows_per_microbatch)
        self.module: nn.Module = self.engine
        self.grad_norm: Tensor | float | None = None
        self.left_out = self.skipped = False

    def _initialise(self, stage: int, optim: AdamW, groups: Groups, elements: int, rows_per_microbatch: int) -> None:
        within = groups.mesh.tensor * groups.mesh.pipeline > 1
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=_Box(self.bare) if groups.mesh.pipeline > 1 else self.bare,
            optimizer=optim.build(self.bare.parameters()),
            mpu=_ModelParallelUnit(groups) if within else None,
            dist_init_required=False,
            config={
                # Every value that DeepSpeed would otherwise choose by itself and that changes numbers.
                "train_micro_batch_size_per_gpu": rows_per_microbatch,
                "gradient_accumulation_steps": 1,
                # At stage 0 DeepSpeed clips but does not tell the norm, so `step` does it there.
                "gradient_clipping": optim.clip_norm if stage else 0.0,
                # Stage 3 allocates a whole bucket at once, 2 GB by default, however small the model is.
                "zero_optimization": {"stage": stage, "reduce_bucket_size": min(BUCKET, max(1, elements))},
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "steps_per_print": 2**31,
                "wall_clock_breakdown": False,
            },
        )

    def backward(self, loss: Tensor) -> None:
        """Gradients of `loss`, averaged and partitioned as the stage says."""
        self.engine.backward(loss)

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Keeps whole local gradients until its end, also at stages 2 and 3; then averages and partitions them."""
        if self.stage:
            with self.engine.coalesce_grad_reduction():
                yield
        else:
            yield
            self.engine.buffered_allreduce_fallback()

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Gathered one tensor at a time from the ranks that have a part of it."""
        for name, parameter in self.bare.named_parameters():
            gradient = safe_get_full_grad(parameter) if self.stage else parameter.grad
            if gradient is not None:
                yield self.places[name].name, gradient

    def step(self, lr: float) -> None:
        """Clip, update this rank's partition, gather the parameters."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        norm: Tensor | float | None = None
        if self.stage == 0 and self.clip_norm:
            norm = clip_global_norm(self.bare, self.places, self.group_of, self.clip_norm)
        self.engine.step()
        self.left_out = bool(getattr(self.engine.optimizer, "overflow", False))  # agreed on by all ranks of the mesh
        self.skipped = self.skipped or self.left_out
        if self.stage:
            norm = self.engine.get_global_grad_norm()
        self.grad_norm = norm

    def chunks(self) -> Iterator[Chunk]:
        """Weights and Adam's moments, gathered one tensor at a time over the data ranks."""
        steps = self._steps()
        for name, parameter in self.bare.named_parameters():
            place = self.places[name]
            weight = self._weight(parameter)
            if place.writes:
                yield place.weight(weight)
            if steps is None:
                continue
            for slot in SLOTS:
                state = self._slot(parameter, slot)
                if place.writes:
                    yield place.state(slot, state)
            count = torch.tensor(float(steps))
            if place.owns(count):
                yield place.state("step", count)

    def restore(self, read: ReadChunk) -> None:
        """Adam's moments and step count; the state must exist before DeepSpeed can set it."""
        inner = self._inner()
        self._create_state()
        for name, parameter in self.bare.named_parameters():
            place = self.places[name]
            for slot in SLOTS:
                value = read(place.state(slot, torch.empty(place.sizes, device="meta")))
                self._set_slot(parameter, slot, value.to(parameter.device))
            step = read(place.state("step", torch.zeros(())))
        for state in inner.state.values():
            if isinstance(state["step"], Tensor):
                state["step"].fill_(float(step))  # on the GPU, of the fused optimizer
            else:
                state["step"] = int(step)

    def _inner(self) -> torch.optim.Optimizer:
        """The torch optimizer inside DeepSpeed's wrapping."""
        optimizer: Any = self.engine.optimizer
        while not isinstance(optimizer, torch.optim.AdamW):
            optimizer = optimizer.optimizer
        return optimizer

    def _steps(self) -> float | None:
        for state in self._inner().state.values():
            if "step" in state:
                return float(state["step"])
        return None

    def _weight(self, parameter: nn.Parameter) -> Tensor:
        if self.stage == 0:
            return parameter.detach()
        weight: Tensor = safe_get_full_fp32_param(parameter)
        return weight

    def _slot(self, parameter: nn.Parameter, slot: str) -> Tensor:
        if self.stage == 0:
            state: Tensor = self._inner().state[parameter][slot]
            return state
        state = safe_get_full_optimizer_state(parameter, slot)
        return state

    def _set_slot(self, parameter: nn.Parameter, slot: str, value: Tensor) -> None:
        zero: Any = self.engine.optimizer
        if self.stage == 0:
            self._inner().state[parameter][slot].copy_(value)
        elif self.stage == 3:
            # safe_set_full_optimizer_state cannot cut a tensor whose size the ranks do not divide.
            part, _ = zero._get_fp32_opt_state_partition(parameter, release_swap_buffers=False, optim_state_key=slot)
            start = part.numel() * zero._get_param_partition_rank(parameter)
            local = value.flatten()[start : start + part.numel()]
            part[: local.numel()].copy_(local)
        else:
            safe_set_full_optimizer_state(parameter, value, slot)

    def _create_state(self) -> None:
        """Let the inner optimizer make its (zero) moments, by one step that changes nothing."""
        inner = self._inner()
        zero: Any = self.engine.optimizer
        kept = [(g["lr"], g["params"]) for g in inner.param_groups]
        if self.stage == 3:
            # Stage 3 hands the optimizer one flat partition at a time and keeps its lists empty between steps.
            for i, flat in enumerate(zero.fp32_partitioned_groups_flat):
                inner.param_groups[zero.sub_group_to_group_id[i]]["params"].append(flat)
        for group in inner.param_groups:
            group["lr"] = 0.0
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        inner.step()
        inner.zero_grad(set_to_none=True)
        for group, (lr, parameters) in zip(inner.param_groups, kept, strict=True):
            group["lr"], group["params"] = lr, ([] if self.stage == 3 else parameters)
        if self.stage in (1, 2):
            zero._link_all_hp_params()
            zero._lazy_init_hp_params_optimizer_state()
