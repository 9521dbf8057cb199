"""Hand-written: a bare TorchTrainer with the same model; prints the moment of its first step."""

import json
import os
import time
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from bench.asked import nothing_but_help


def worker(config: dict[str, Any]) -> float | None:
    import torch.distributed as dist
    from torch.nn.functional import binary_cross_entropy_with_logits

    from bench.peers.model import batches, build

    rank, world = dist.get_rank(), dist.get_world_size()
    model, optimizer = build(world)
    dense, ids, label = next(batches(config["data"], rank=rank, world_size=world))
    loss = binary_cross_entropy_with_logits(model(dense, ids), label)
    loss.backward()
    optimizer.step()
    return time.time()


def main() -> None:
    ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=os.environ["RTRAIN_RAY_TEMP_DIR"])
    trainer = TorchTrainer(
        worker,
        train_loop_config={"data": os.environ["BENCH_DATA"]},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=os.environ["BENCH_STORAGE"]),
    )
    print(json.dumps({"first_step_at": trainer.fit().return_value}), flush=True)


if __name__ == "__main__":
    nothing_but_help("bench.peers.bare_ray", __doc__)
    main()
