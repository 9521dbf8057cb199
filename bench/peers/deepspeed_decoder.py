"""The hand-written decoder under bare DeepSpeed, ZeRO-1 over the ranks of torchrun; one line of JSON on rank 0."""

import json
import math
import os
import time

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

# DeepSpeed probes for accelerators and chatters on standard output unless it is told.
os.environ.setdefault("DS_ACCELERATOR", "cpu")
import deepspeed

from bench.asked import nothing_but_help
from bench.peers.decoder import Model, begin
from recipes.gpt_stdlib import run


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    config = run()
    steps, warm = int(os.environ["BENCH_STEPS"]), int(os.environ["BENCH_WARM"])
    model = Model(config.data.context)
    begin(model)
    engine, adam, _, _ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1),
        config={
            "train_micro_batch_size_per_gpu": config.global_batch // world,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": 1},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 2**31,
        },
    )
    reader = iter(config.data.open().reader(global_batch=config.global_batch, seed=0, rank=rank, world_size=world))
    total, points = torch.zeros(()), []
    began = 0.0
    for step in range(steps):
        if step == warm:
            began = time.perf_counter()
        batch, _ = next(reader)
        loss = cross_entropy(engine(batch.tokens).flatten(0, 1), batch.targets.flatten())
        engine.backward(loss)
        done = min(1.0, (step - 100) / (2000 - 100))
        factor = (step + 1) / 100 if step < 100 else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))
        adam.param_groups[0]["lr"] = 1e-3 * factor
        engine.step()
        total += loss.detach()
        if (step + 1) % 50 == 0:  # as often as rtrain
            dist.all_reduce(total)
            points.append(float(total) / 50 / world)
            total.zero_()
    rate = (steps - warm) / (time.perf_counter() - began)
    if rank == 0:
        print(json.dumps({"steps_per_s": rate, "losses": points}), flush=True)
    dist.barrier()
    os._exit(0)  # leaving gloo's group at the end of the process aborts now and then (a thread still runs)


if __name__ == "__main__":
    nothing_but_help("bench.peers.deepspeed_decoder", __doc__)
    main()
