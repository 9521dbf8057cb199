"""Bytes that a rank holds between backward pass and step, at each ZeRO stage, as rtrain trains the decoder.

Started by `python -m bench --only zero_bytes_1` (or 2, 3) under torchrun; one line of JSON on rank 0. What is held is
counted from the live tensors' memory, activations of the pass apart: they are freed by then.

The ideal is the ZeRO paper's (Rajbhandari et al., 2020) for float32, N ranks and P parameters: weights and
gradients of 4 P bytes, Adam's moments of 8 P; stage 1 divides the moments by N, stage 2 the gradients too, stage 3 all.
"""

import gc
import json
import os
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bench.asked import nothing_but_help
from recipes.gpt_stdlib import run
from rtrain import Decoder, Parallel
from rtrain.mesh import lay_out
from rtrain.training.breakdown import Stopwatch
from rtrain.training.replica import Replica
from rtrain.training.world import join, leave

MODEL = Decoder(vocab=256, layers=4, dim=512, heads=8)
"""Large enough that what does not grow with it is lost in it: 13 M parameters."""


def held() -> dict[int, int]:
    """Address -> bytes of the memory behind every live tensor."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, nn.Parameter) and not thing.is_meta:
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
            if thing.grad is not None:
                found[thing.grad.untyped_storage().data_ptr()] = thing.grad.untyped_storage().nbytes()
    return found


def main() -> None:
    torch.set_num_threads(1)
    world = join(gpu=False, timeout_s=120.0)
    stage = int(os.environ["BENCH_STAGE"])
    config = replace(run(), model=MODEL, parallel=Parallel(dense="zero", zero_stage=stage))
    data = config.data.open()
    reader = iter(data.reader("train", global_batch=4, seed=0, rank=world.rank, world_size=world.size))
    before = held()
    replica = Replica(
        replace(config, global_batch=4), lay_out(config.parallel, world.size), world, stored=None, training=True
    )
    watch = Stopwatch(world.device, sample_steps=0)
    for step in range(2):  # the moments are made by the first step
        batch: Any = next(reader)[0]
        replica.forward_backward(batch, step=step, total_steps=2, watch=watch)
        mine = sum(size for address, size in held().items() if address not in before)
        replica.update(step=step, total_steps=2, watch=watch)
    parameters = replica.bytes_per_rank()[0]["optimizer"] // 8 * world.size
    sizes: list[int] = [0] * world.size
    dist.all_gather_object(sizes, mine)
    weights, gradients, moments = (
        x * parameters / (world.size if stage >= s else 1) for x, s in ((4, 3), (4, 2), (8, 1))
    )
    if world.rank == 0:
        print(json.dumps({"held": max(sizes), "ideal": weights + gradients + moments, "parameters": parameters}))
    leave()


if __name__ == "__main__":
    nothing_but_help("bench.zero_bytes", __doc__)
    main()
