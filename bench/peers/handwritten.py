"""Hand-written: torchrun + TorchRec + DDP, no rtrain, no Ray. Prints one line of JSON on rank 0."""

import json
import os
import resource
import time

import torch
import torch.distributed as dist
from torch.nn.functional import binary_cross_entropy_with_logits

from bench.asked import nothing_but_help
from bench.peers.model import batches, build


def main() -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    steps, log_every = int(os.environ["BENCH_STEPS"]), int(os.environ["BENCH_LOG_EVERY"])
    model, optimizer = build(world)
    data = batches(os.environ["BENCH_DATA"], rank=rank, world_size=world)
    total = torch.zeros(())
    points = []
    for step in range(1, steps + 1):
        dense, ids, label = next(data)
        loss = binary_cross_entropy_with_logits(model(dense, ids), label)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.detach()
        if step % log_every == 0:  # as often as rtrain, and its clock too is read before the exchange
            at = time.perf_counter()
            dist.all_reduce(total)
            points.append({"step": step, "at": at, "loss": float(total) / log_every / world})
            total.zero_()
    peaks = [0] * world
    dist.all_gather_object(peaks, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    if rank == 0:
        print(json.dumps({"points": points, "peak_bytes_per_rank": peaks}), flush=True)
    dist.barrier()
    os._exit(0)  # leaving gloo's group at the end of the process aborts now and then (a thread still runs)


if __name__ == "__main__":
    nothing_but_help("bench.peers.handwritten", __doc__)
    main()
