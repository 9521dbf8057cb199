"""What a request costs on Ray Serve, CPU and seconds, beside a bare deployment; prints JSON: python -m bench.serve

The same export of a small DLRM (13 numbers, 26 ids, dim 16) answers one row a request behind one proxy, three times:
by a deployment of a dozen lines (`bare`), as `rtrain serve` does (`rtrain`), and as the champion of an endpoint, behind
its router (`endpoint`). Its weights as one ONNX file, tables and all, answer in a process of FastAPI and ONNX Runtime
alone, without Ray (`by_hand`, `bench/peers/fastapi_onnx.py`). Clients of a process of their own ask as fast as they are
answered; which side is asked changes from phase to phase, in another order each round. CPU is of Serve's processes, the
proxy's with them, or of the one written by hand.
"""

import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch
from fastapi import Request
from torch import Tensor, nn

from bench.asked import parser
from bench.data import DENSE, ROWS_PER_TABLE, TABLES, write
from bench.job import run
from rtrain.export.artifact import Predictor

CLIENTS, PHASE_S, WARM_S = 4, 6.0, 2.0
SERVE = ("ServeReplica", "ProxyActor", "ray::Router", "ray::Ranker", "ray::Bare", "ray::Conductor")
PORT, HAND_PORT = 23_517, 23_518


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
                row = row_of(draw)
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


def cpu(pid: int | None = None) -> float:
    """Seconds that Serve's processes have had, or the one of that number."""
    if pid is not None:
        return float(sum(psutil.Process(pid).cpu_times()[:2]))
    total = 0.0
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if line.startswith("ray::") and any(name in line for name in SERVE):
                total += sum(process.cpu_times()[:2])
    return total


def phase(url: str, seconds: float, pid: int | None = None) -> dict[str, float]:
    """One side for a while; `pid`: of the process that answers, where that is not Serve."""
    context = multiprocessing.get_context("spawn")
    said = context.Queue()
    client = context.Process(target=asked, args=(url, seconds, said))
    before = cpu(pid)
    client.start()
    took, failed = said.get(timeout=seconds + 180)
    client.join(60)
    if failed:
        raise RuntimeError(f"{failed} of {len(took)} requests to {url} failed")
    p50, p99 = (float(x) for x in np.quantile(np.array(took), [0.5, 0.99]))
    return {"cpu_ms": 1e3 * (cpu(pid) - before) / len(took), "p50_ms": 1e3 * p50, "p99_ms": 1e3 * p99, "n": len(took)}


class Held(nn.Module):
    """The whole model of numbers [B, 13] and ids [B, 26], tables and all, as one would export it by hand."""

    def __init__(self, export: str):
        super().__init__()
        of = Predictor(export, program="eager").lookup
        self.whole, self.tables = of.whole.eval(), nn.ParameterDict()
        self.names = {name: f"table_{n}" for n, name in enumerate(of.tables)}
        for name, weight in of.tables.items():
            self.register_buffer(self.names[name], weight)

    def forward(self, numbers: Tensor, ids: Tensor) -> Tensor:
        """Probabilities [B]."""
        named = {name: getattr(self, held) for name, held in self.names.items()} | {"ids": ids.T, "dense": numbers}
        return torch.sigmoid(self.whole(*(named[name] for name in self.whole.takes)))


@contextmanager
def by_hand(export: str, folder: Path) -> Iterator[int]:
    """A server written by hand, of the same weights: its process's number, when it answers."""
    model, path = Held(export).eval(), folder / "by_hand.onnx"
    some = (torch.zeros(3, DENSE), torch.zeros(3, TABLES, dtype=torch.int64))
    with torch.no_grad():
        made = torch.onnx.export(
            model, some, dynamo=True, input_names=["numbers", "ids"], dynamic_shapes=({0: "rows"}, {0: "rows"}),
            opset_version=18, verbose=False,
        )  # fmt: skip
    assert made is not None
    made.save(str(path), external_data=False)
    process = subprocess.Popen([sys.executable, "-m", "bench.peers.fastapi_onnx", str(path), str(HAND_PORT)])
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{HAND_PORT}/openapi.json", timeout=5).status_code == 200:
                    break
            time.sleep(0.2)
        yield process.pid
    finally:
        process.kill()
        process.wait(60)


def same(urls: Iterable[str]) -> None:
    """All sides answer the same: another model's speed would say nothing."""
    draw = random.Random(7)
    rows = [row_of(draw) for _ in range(8)]
    said = [httpx.post(url, json={"rows": rows}, timeout=60).raise_for_status().json()["predictions"] for url in urls]
    if not all(np.allclose(one, said[0], rtol=0, atol=1e-5) for one in said):
        raise RuntimeError(f"the sides answer differently: {said}")


def row_of(draw: random.Random) -> dict[str, Any]:
    numbers: dict[str, Any] = {f"d{i}": draw.gauss(0, 1) for i in range(DENSE)}
    return numbers | {f"c{i}": draw.randrange(ROWS_PER_TABLE) for i in range(TABLES)}


def measure(folder: Path, count: int) -> dict[str, list[dict[str, float]]]:
    """All phases of all sides."""
    from ray import serve as ray_serve

    from rtrain.endpoint.endpoint import Endpoint
    from rtrain.release.gate import Gate
    from rtrain.release.servable import Servable
    from rtrain.serving.app import application_of
    from rtrain.serving.ports import NO_LINE_EACH, listen

    export = exported(folder)

    @ray_serve.deployment(name="Bare", ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=256)
    class Bare:
        def __init__(self) -> None:
            torch.set_num_threads(1)
            self.predictor = Predictor(export)

        async def __call__(self, request: Request) -> dict[str, Any]:
            return {"predictions": self.predictor.predict((await request.json())["rows"])}

    listen("127.0.0.1", PORT)
    ray_serve.run(Bare.bind(), name="bare", route_prefix="/bare", logging_config=NO_LINE_EACH)
    ours = application_of(export, ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=256)
    ray_serve.run(ours, name="rtrain", route_prefix="/rtrain", logging_config=NO_LINE_EACH)
    Gate(checks=(Servable(),)).judge(f"{folder}/runs/bench")
    endpoint = Endpoint(
        name="endpoint", port=PORT, routers=1, registry=f"sqlite:///{folder}/registry.db", audit=f"{folder}/audit",
        state=f"{folder}/state",
    )  # fmt: skip
    endpoint.release(f"{folder}/runs/bench", "the bench")
    urls = {name: f"http://127.0.0.1:{PORT}/{name}/predict" for name in ("bare", "rtrain", "endpoint")}
    with by_hand(export, folder) as pid:
        urls["by_hand"] = f"http://127.0.0.1:{HAND_PORT}/predict"
        same(urls.values())
        found = rounds(urls, {"by_hand": pid}, count)
    endpoint.stop()
    return found


def rounds(urls: Mapping[str, str], pids: Mapping[str, int], count: int) -> dict[str, list[dict[str, float]]]:
    """Each side for a while, again and again, each round beginning with another one."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in urls}
    for name, url in urls.items():
        phase(url, WARM_S, pids.get(name))
    for number in range(count):
        first = number % len(urls)
        for name in list(urls)[first:] + list(urls)[:first]:
            found[name].append(phase(urls[name], PHASE_S, pids.get(name)))
            print(f"bench: round {number + 1}/{count}, {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Print medians, and ratios to `bare` with their least and greatest."""
    asking = parser("bench.serve", __doc__)
    asking.add_argument("--rounds", type=int, default=5, help="phases of each side (default 5)")
    count = asking.parse_args().rounds
    if count < 1:
        asking.error("--rounds: must be at least 1")
    from rtrain.launch.embedded import embedded_ray
    from rtrain.launch.session import DEFAULTS, EMBEDDED

    for name, value in {**DEFAULTS, **EMBEDDED}.items():
        os.environ.setdefault(name, value)
    with tempfile.TemporaryDirectory(prefix="bs-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.environ.setdefault("RTRAIN_RAY_TEMP_DIR", f"{folder}/r")
        Path(os.environ["RTRAIN_RAY_TEMP_DIR"]).mkdir(parents=True, exist_ok=True)
        with embedded_ray(num_cpus=4):
            found = measure(Path(folder), count)
    said: dict[str, Any] = {"phases": found}
    for name, phases in found.items():
        said[name] = {key: statistics.median(p[key] for p in phases) for key in phases[0]}
        for key in ("cpu_ms", "p50_ms"):
            ratios = [p[key] / b[key] for p, b in zip(phases, found["bare"], strict=True)]
            said[name][f"{key}/bare"] = [statistics.median(ratios), min(ratios), max(ratios)]
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
