"""What a run was trained with: data, versions and hardware, told by its workers."""

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from rtrain.checkpoint.fence import Attempt
from rtrain.storage import Folder
from rtrain.training.world import World
from rtrain.version import VERSION

SURROUNDINGS = "surroundings.json"
PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "deepspeed", "ray", "numpy")


def write_surroundings(folder: Folder, world: World, attempt: Attempt | None, *, data: str) -> None:
    """surroundings.json: versions on rank 0, and the hardware of each node. A collective over all ranks.

    `attempt` as in `write_placement`; `data`: the fingerprint of what is trained on.
    """
    everyone: list[Any] = [None] * world.size
    dist.all_gather_object(everyone, (world.node, hardware(world) if world.local_rank == 0 else None))
    if attempt and not attempt.overtaken:
        nodes = {node: about for node, about in everyone if about is not None}
        folder.write_json(SURROUNDINGS, {"data": data, "versions": versions(), "nodes": nodes})


def versions() -> dict[str, str]:
    """rtrain, Python and the packages that training rests on, of those installed."""
    found = {"rtrain": VERSION, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(world: World) -> dict[str, Any]:
    """Processor, cores, bytes of memory and GPUs of this machine."""
    return machine(gpus=world.device.type == "cuda")


def machine(*, gpus: bool) -> dict[str, Any]:
    """As `hardware`; `gpus`: whether this process is one that uses them, since asking for their names takes some."""
    count = torch.cuda.device_count() if gpus else 0
    return {
        "cpu": processor(),
        "cores": psutil.cpu_count() or 0,
        "memory_bytes": int(psutil.virtual_memory().total),
        "gpus": [torch.cuda.get_device_name(i) for i in range(count)],
    }


def processor() -> str:
    """The name that this machine's processor gives itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
