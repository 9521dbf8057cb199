"""Measures this machine as a hardware profile: products, copies, a kernel's launch, collectives between devices.

What one machine cannot show (the network between nodes, a TorchRec step's host time) is taken from another profile,
and the file says so.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rtrain.outlook.profile import PRECISIONS, Profile
from rtrain.rounding import ceil_div
from rtrain.training.surroundings import processor

SIZES = (8, 32, 128, 512, 1024, 2048)
SIZES_OF_GPUS = (*SIZES, 4096, 8192)
COPIED_BYTES = 256 * 1024**2
SMALL, LARGE = 1, 16 * 1024**2
"""Elements of the collectives of which one is all latency, the other all bytes."""
WAIT_S = 120
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured."""

    seconds: float = 0.3
    """Of each figure, at least, after one try that is not counted."""
    largest: int = 8192
    """Edge of the largest product."""
    copied_bytes: int = COPIED_BYTES
    summed: int = LARGE
    """Elements of the large all-reduce."""


def calibrate(like: Profile, *, ranks: int, effort: Effort | None = None, say: Say = lambda _: None) -> dict[str, Any]:
    """The JSON of a profile of this machine's devices: GPUs where torch sees some, else cores.

    `like`: where the figures come from that are not measured here. `ranks`: processes between which collectives are
    measured, one a device; 1: none are.
    """
    effort = effort or Effort()
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if not gpu else threads)  # a rank of several on one machine has a core
    try:
        measured = _alone(device, effort, say)
    finally:
        torch.set_num_threads(threads)
    found = {k: v for k, v in asdict(like).items() if k != "name"} | measured
    here = f"measured {time.strftime('%Y-%m-%d')} on {_machine(gpu)}"
    sources = {", ".join(measured): here}
    if ranks > 1:
        say(f"all-reduce between {ranks} processes")
        links = _links(ranks, gpu, effort)
        found |= links
        sources[", ".join(links)] = f"{here}, between {ranks} processes"
    found["devices_per_node"] = torch.cuda.device_count() if gpu else max(ranks, 1)
    left = [key for key in found if key not in measured and key not in ("sources", "accelerator", "devices_per_node")]
    left = [key for key in left if not any(key in of.split(", ") for of in sources)]
    sources[", ".join(left)] = f"as {like.name}: not measured here"
    return found | {"accelerator": gpu, "sources": sources}


def _alone(device: torch.device, effort: Effort, say: Say) -> dict[str, Any]:
    """Figures of one device."""
    gpu = device.type == "cuda"
    sizes = [n for n in (SIZES_OF_GPUS if gpu else SIZES) if n <= effort.largest]
    rates = {}
    for precision in PRECISIONS:
        if precision == "tf32" and not gpu:
            continue
        say(f"products in {precision}, {sizes[0]} to {sizes[-1]}")
        with _precision(precision):
            rates[precision] = [_product_rate(n, precision, device, effort) for n in sizes]
    rates.setdefault("tf32", rates["float32"])
    curve = rates["bfloat16" if gpu else "float32"]
    say("attention, copies, launches")
    peak = max(curve)
    memory = torch.cuda.get_device_properties(0).total_memory if gpu else psutil.virtual_memory().total
    return {
        "flops": {precision: max(of) for precision, of in rates.items()},
        "efficiency": [[n, rate / peak] for n, rate in zip(sizes, curve, strict=True)],
        "attention_efficiency": min(1.0, _attention_rate(device, effort) / peak),
        "memory_bytes": memory if gpu else ceil_div(memory, psutil.cpu_count() or 1),
        "memory_bandwidth": _copy_rate(device, effort),
        "memory_efficiency": 1.0,  # of what a copy reaches
        "launch_s": _launch_s(device, effort),
    }


@contextmanager
def _precision(precision: str) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _product_rate(size: int, precision: str, device: torch.device, effort: Effort) -> float:
    """FLOP/s of a product of two square matrices."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2.0 * size**3 / median_s(lambda: torch.mm(a, b, out=out), device, effort.seconds)


def _attention_rate(device: torch.device, effort: Effort) -> float:
    """FLOP/s of torch's fused attention, causal, of which half is done."""
    gpu = device.type == "cuda"
    rows, heads, length, width = (4, 16, 2048, 64) if gpu else (1, 4, min(512, effort.largest), 64)
    dtype = torch.bfloat16 if gpu else torch.float32
    q, k, v = (torch.randn(rows, heads, length, width, device=device, dtype=dtype) for _ in range(3))
    attend = torch.nn.functional.scaled_dot_product_attention
    with torch.no_grad():
        seconds = median_s(lambda: attend(q, k, v, is_causal=True), device, effort.seconds)
    return 4.0 * rows * heads * length**2 * width / 2 / seconds


def _copy_rate(device: torch.device, effort: Effort) -> float:
    """Bytes/s that a copy reads and writes."""
    source = torch.ones(effort.copied_bytes // 4, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.nbytes / median_s(lambda: target.copy_(source), device, effort.seconds)


def _launch_s(device: torch.device, effort: Effort) -> float:
    """Seconds of the host for one small kernel, of a hundred that nobody waits for."""
    x = torch.ones(1, device=device)

    def hundred() -> None:
        for _ in range(100):
            x.add_(1.0)

    return median_s(hundred, device, effort.seconds) / 100


def median_s(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Median seconds of `work`, done again and again for `seconds`; at least 5 times, after one that is not counted."""

    def once() -> float:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()
    times, ends = [once() for _ in range(5)], time.perf_counter() + seconds
    while time.perf_counter() < ends:
        times.append(once())
    return statistics.median(times)


def _links(ranks: int, gpu: bool, effort: Effort) -> dict[str, float]:
    """Bytes/s and latency between devices of this machine, of a ring's all-reduce: 2 (n - 1) messages, 2 (n - 1) / n of
    the bytes."""
    with TemporaryDirectory(prefix="rtrain-calibrate-") as folder:
        context = mp.get_context("spawn")
        results = context.SimpleQueue()
        arguments = (ranks, gpu, f"{folder}/store", effort, results)
        workers = [context.Process(target=_rank, args=(rank, *arguments), daemon=True) for rank in range(ranks)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(WAIT_S + 2 * effort.seconds)
            if worker.exitcode != 0:
                for each in workers:
                    each.kill()
                raise RuntimeError(f"a process of the all-reduce ended with {worker.exitcode}")
        small_s, large_s = results.get()
    ring = 2 * (ranks - 1)
    size_bytes = 4.0 * effort.summed
    return {
        "link_latency_s": small_s / ring,
        "link_bandwidth": ring / ranks * size_bytes / max(large_s - small_s, 1e-9),
        "link_efficiency": 1.0,
    }


def _rank(rank: int, ranks: int, gpu: bool, store: str, effort: Effort, results: Any) -> None:
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if gpu else "gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks,
        timeout=timedelta(seconds=WAIT_S),
    )  # fmt: skip
    found = [_all_reduce_s(elements, device, effort.seconds) for elements in (SMALL, effort.summed)]
    if rank == 0:
        results.put(found)
    dist.barrier()
    dist.destroy_process_group()


def _all_reduce_s(elements: int, device: torch.device, seconds: float) -> float:
    """Median seconds; as many on every rank, which one of them decides."""
    x = torch.zeros(elements, device=device)

    def timed() -> float:
        began = time.perf_counter()
        dist.all_reduce(x)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    timed()
    count = torch.tensor([max(5, int(seconds / max(timed(), 1e-6)))], device=device)
    dist.broadcast(count, src=0)
    return statistics.median(timed() for _ in range(min(int(count), 2000)))


def _machine(gpu: bool) -> str:
    return torch.cuda.get_device_name(0) if gpu else f"one core of {processor()}"
