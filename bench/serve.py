"""What a request costs on Ray Serve, CPU and seconds, beside a bare deployment; prints JSON: python -m bench.serve

The same export of a small DLRM (13 numbers, 26 ids, dim 16) answers one row a request behind one proxy, three times:
by a deployment of a dozen lines (`bare`), as `rtrain serve` does (`rtrain`), and as the champion of an endpoint, behind
its router (`endpoint`). Clients of a process of their own ask as fast as they are answered; which one is asked changes
from phase to phase, in another order each round. CPU is of Serve's processes, the proxy's with them. ONNX Runtime and
hand-written servers without Ray are not in it.
"""

import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from fastapi import Request

from bench.asked import parser
from bench.data import DENSE, TABLES, write
from bench.job import run

CLIENTS, ROUNDS, PHASE_S, WARM_S = 4, 5, 6.0, 2.0
SERVE = ("ServeReplica", "ProxyActor", "ray::Router", "ray::Ranker", "ray::Bare", "ray::Conductor")
PORT = 23_517


def exported(folder: Path) -> str:
    """The bench's job, a few steps of it, with its export."""
    import rtrain

    os.environ |= {"BENCH_DATA": str(write(folder / "data")), "BENCH_STEPS": "20", "BENCH_LOG_EVERY": "10"}
    job = replace(run(), storage=f"{folder}/runs", handoff=rtrain.Handoff(export=True, serve_check=False, rows=64))
    found = rtrain.train(job, launcher="inline", quiet=True)
    assert found is not None and found.export is not None
    return found.export


def asked(url: str, seconds: float, said: Any) -> None:
    """In a process of its own: requests of `CLIENTS` clients; puts all seconds and how many failed."""
    took: list[float] = []
    failed = [0]

    def client(seed: int) -> None:
        draw, deadline = random.Random(seed), time.monotonic() + seconds
        with httpx.Client(timeout=60) as http:
            while time.monotonic() < deadline:
                row = {f"d{i}": draw.gauss(0, 1) for i in range(DENSE)}
                row |= {f"c{i}": draw.randrange(100_000) for i in range(TABLES)}
                began = time.perf_counter()
                answer = http.post(url, json={"rows": [row]})
                took.append(time.perf_counter() - began)
                failed[0] += answer.status_code != 200

    threads = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 120)
    said.put((took, failed[0]))


def cpu() -> float:
    """Seconds that Serve's processes have had."""
    total = 0.0
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if line.startswith("ray::") and any(name in line for name in SERVE):
                total += sum(process.cpu_times()[:2])
    return total


def phase(url: str, seconds: float) -> dict[str, float]:
    """One side for a while."""
    context = multiprocessing.get_context("spawn")
    said = context.Queue()
    client = context.Process(target=asked, args=(url, seconds, said))
    before = cpu()
    client.start()
    took, failed = said.get(timeout=seconds + 180)
    client.join(60)
    if failed:
        raise RuntimeError(f"{failed} of {len(took)} requests to {url} failed")
    p50, p99 = (float(x) for x in np.quantile(np.array(took), [0.5, 0.99]))
    return {"cpu_ms": 1e3 * (cpu() - before) / len(took), "p50_ms": 1e3 * p50, "p99_ms": 1e3 * p99, "n": len(took)}


def measure(folder: Path) -> dict[str, list[dict[str, float]]]:
    """All phases of all sides."""
    from ray import serve as ray_serve

    from rtrain.endpoint.endpoint import Endpoint
    from rtrain.export.artifact import Predictor
    from rtrain.release.gate import Gate
    from rtrain.release.servable import Servable
    from rtrain.serving.app import application_of, listen

    export = exported(folder)

    @ray_serve.deployment(name="Bare", ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=256)
    class Bare:
        def __init__(self) -> None:
            import torch

            torch.set_num_threads(1)
            self.predictor = Predictor(export)

        async def __call__(self, request: Request) -> dict[str, Any]:
            return {"predictions": self.predictor.predict((await request.json())["rows"])}

    listen("127.0.0.1", PORT)
    ray_serve.run(Bare.bind(), name="bare", route_prefix="/bare")
    ours = application_of(export, ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=256)
    ray_serve.run(ours, name="rtrain", route_prefix="/rtrain")
    Gate(checks=(Servable(),)).judge(f"{folder}/runs/bench")
    endpoint = Endpoint(
        name="endpoint", port=PORT, routers=1, registry=f"sqlite:///{folder}/registry.db", audit=f"{folder}/audit",
        state=f"{folder}/state",
    )  # fmt: skip
    endpoint.release(f"{folder}/runs/bench", "the bench")
    urls = {name: f"http://127.0.0.1:{PORT}/{name}/predict" for name in ("bare", "rtrain", "endpoint")}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in urls}
    for url in urls.values():
        phase(url, WARM_S)
    for number in range(ROUNDS):
        order = list(urls)[number % 3 :] + list(urls)[: number % 3]
        for name in order:
            found[name].append(phase(urls[name], PHASE_S))
            print(f"bench: round {number + 1}/{ROUNDS}, {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    endpoint.stop()
    return found


def main() -> int:
    """Print medians, and ratios to `bare` with their least and greatest."""
    parser("bench.serve", __doc__).parse_args()
    from rtrain.launch.embedded import embedded_ray
    from rtrain.launch.session import DEFAULTS, EMBEDDED

    for name, value in {**DEFAULTS, **EMBEDDED}.items():
        os.environ.setdefault(name, value)
    with tempfile.TemporaryDirectory(prefix="bs-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.environ.setdefault("RTRAIN_RAY_TEMP_DIR", f"{folder}/r")
        Path(os.environ["RTRAIN_RAY_TEMP_DIR"]).mkdir(parents=True, exist_ok=True)
        with embedded_ray(num_cpus=4):
            found = measure(Path(folder))
    said: dict[str, Any] = {}
    for name, phases in found.items():
        said[name] = {key: statistics.median(p[key] for p in phases) for key in phases[0]}
        for key in ("cpu_ms", "p50_ms"):
            ratios = [p[key] / b[key] for p, b in zip(phases, found["bare"], strict=True)]
            said[name][f"{key}/bare"] = [statistics.median(ratios), min(ratios), max(ratios)]
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
