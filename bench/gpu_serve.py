"""Answers of an export on a GPU, by a processor beside it: python -m bench.gpu_serve

The models of bench.programs, without Ray, one thread. `eager`: torch's modules; `onnx`: the export's program, on CPU;
`compiled`: by AOTInductor, for the processor or for the GPU. `predict`: rows as dicts to numbers; `model`: of a batch
that is encoded already, from host memory to outputs in host memory. Milliseconds of a call, medians of the pairs'
medians with the least and greatest; sides alternate, each pair begins with another one. Prints JSON.

Without a GPU the sides of the processor are left alone, which says nothing of GPUs.
"""

import json
import os
import tempfile
from pathlib import Path

import torch

from bench.asked import parser
from bench.data import write
from bench.programs import CALLS, MODELS, exported, of_model, on_cpu
from rtrain.export.artifact import Predictor


def sides_of(export: str) -> dict[str, Predictor]:
    sides = {f"cpu {name}": side for name, side in on_cpu(export).items()}
    if torch.cuda.is_available():
        sides["gpu eager"] = Predictor(export, device="cuda")
        sides["gpu, host's tables"] = Predictor(export, device="cuda", tables="host")
        sides["gpu compiled"] = Predictor(export, device="cuda", program="compiled")
    return sides


def main() -> None:
    asking = parser("bench.gpu_serve", __doc__)
    asking.add_argument("--pairs", type=int, default=5, help="of each size (default 5)")
    asking.add_argument("--only", choices=MODELS, help="one model")
    asked = asking.parse_args()
    torch.set_num_threads(1)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"BENCH_DATA": str(write(folder / "data")), "BENCH_STEPS": "20", "BENCH_LOG_EVERY": "10"}
        for model in MODELS:
            if asked.only in (None, model):
                found = of_model(sides_of(exported(folder, model)), asked.pairs, whole=CALLS)
                print(json.dumps({"model": model, "gpu": device, "ms": found}), flush=True)


if __name__ == "__main__":
    main()
