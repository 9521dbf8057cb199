"""What `plan --hardware` would have said of runs whose speed others have published, beside what they measured.

python -m bench.published          writes docs/foresight_published.md

rtrain cannot do all that these runs did (float8, compiled code, activation checkpointing), so each is put through the
same formulas with its own `Practice`. A device's curve is one for all entries, and no figure is fitted to any of them.
"""

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.asked import parser
from rtrain import AdamW, Cluster, Decoder, Duration, Evaluation, Parallel, Run, TokenLoss, Tokens
from rtrain.mesh import lay_out
from rtrain.outlook.kernels import Practice
from rtrain.outlook.outlook import on_hardware, summed_up
from rtrain.outlook.profile import profile
from rtrain.outlook.step import Stepper

OUT = Path(__file__).parents[1] / "docs" / "foresight_published.md"
TITAN = "[torchtitan, Dec 2024](https://github.com/pytorch/torchtitan/blob/main/benchmarks/llama3_h100_202412_torchtitan.md)"
FOUNDRY = "[LLM Foundry](https://github.com/mosaicml/llm-foundry/blob/main/scripts/train/benchmarking/README.md)"
HERE = "[measured here](../bench/results/2026-11-28-gpu.md)"
COMPILED = 0.4
"""Of bytes and kernels without a product, what compiled code leaves: a stated assumption."""
SELECTIVE = 0.5
"""Of the forward pass, what torchtitan's selective checkpointing does again, every second product: as above."""
AGAIN = {"recomputed": 1.0, "recomputed_attention": 1.0, "recomputed_others": 1.0}
"""Of blocks whose activations are checkpointed in full."""
ASYNC = 0.5
"""Of tensor ranks' collectives, what AsyncTP hides: as above."""

LLAMA: dict[str, dict[str, int]] = {
    "8B": {"layers": 32, "dim": 4096, "heads": 32, "hidden": 14336},
    "70B": {"layers": 80, "dim": 8192, "heads": 64, "hidden": 28672},
    "405B": {"layers": 126, "dim": 16384, "heads": 128, "hidden": 53248},
}
MPT: dict[str, dict[str, int]] = {
    "7b": {"layers": 32, "dim": 4096, "heads": 32},
    "13b": {"layers": 40, "dim": 5120, "heads": 40},
    "30b": {"layers": 48, "dim": 7168, "heads": 56},
    "70b": {"layers": 80, "dim": 8192, "heads": 64},
}
"""Their feed-forward layers have two products of 4 dim, as many FLOPs as SwiGLU's three of 8/3 dim."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One published figure."""

    name: str
    source: str
    hardware: str
    devices: int
    model: Decoder
    context: int
    batch: int
    parallel: Parallel
    practice: Practice
    published: float
    """Tokens/s of a device."""

    def predicted(self) -> float:
        """Tokens/s of a device."""
        device = profile(self.hardware)
        run = on_hardware(
            Run(
                name="published",
                model=self.model,
                data=Tokens(source="stdlib", context=self.context),
                optim=AdamW(),
                global_batch=self.batch,
                duration=Duration(steps=1),
                parallel=self.parallel,
                evaluation=Evaluation(monitor="loss"),
                cluster=Cluster(workers=self.devices),
                metrics=(TokenLoss(),),
            ),
            device,
        )
        mesh = lay_out(self.parallel, self.devices)
        step = Stepper(run=run, profile=device, practice=self.practice).step(self.parallel, mesh)
        return summed_up(run, device, mesh, step, price=None).per_second / self.devices


def titan(size: str, devices: int, published: float, *, batch: int, said: str, layout: Any, practice: Any) -> Entry:
    """Llama 3.1 on H100s of 500 W with slower memory; sequences of 8,192 tokens."""
    return Entry(
        name=f"Llama 3.1 {size}, {said}",
        source=TITAN,
        hardware="h100_500w",
        devices=devices,
        model=Decoder(vocab=128256, kv_heads=8, rope_theta=5e5, **LLAMA[size]),
        context=8192,
        batch=batch,
        parallel=Parallel(precision="bfloat16", **{"zero_stage": 3} | layout),
        practice=Practice(hides="all", gathered_bytes=2.0, **practice),
        published=published,
    )


def mpt(size: str, hardware: str, devices: int, published: float, *, micro: int, steps: int, again: bool) -> Entry:
    """An MPT model under FSDP, sequences of 2,048 tokens; `micro` rows `steps` times; `again`: checkpointed."""
    said = f"{micro} x {steps} rows a device{', checkpointed' if again else ''}"
    return Entry(
        name=f"MPT {size}, FSDP, {said}",
        source=FOUNDRY,
        hardware=hardware,
        devices=devices,
        model=Decoder(vocab=50368, tied=True, **MPT[size]),
        context=2048,
        batch=micro * steps * devices,
        parallel=Parallel(precision="bfloat16", zero_stage=3, microbatches=steps),
        practice=Practice(hides="all", gathered_bytes=2.0, **AGAIN if again else {}),
        published=published,
    )


def here(precision: Any, milliseconds: float) -> Entry:
    """`bench.step`'s decoder, on one H100."""
    return Entry(
        name=f"12 layers of 768, {precision}, one rank",
        source=HERE,
        hardware="h100",
        devices=1,
        model=Decoder(vocab=32_000, layers=12, dim=768, heads=12),
        context=1024,
        batch=8,
        parallel=Parallel(dense="ddp", precision=precision),
        practice=Practice(),
        published=8 * 1024 / milliseconds * 1000,
    )


def entries() -> list[Entry]:
    """All of them."""
    selective = {"recomputed": SELECTIVE, "recomputed_others": 1.0}
    compiled = selective | {"fused": COMPILED}
    full = AGAIN | {"fused": COMPILED, "products": "float8", "gathers": 0.5}
    three = {"tensor": 8, "pipeline": 8, "zero_stage": 2}
    return [
        titan("8B", 8, 5762, batch=16, said="FSDP 8, eager", layout={}, practice=selective),
        titan("8B", 8, 6667, batch=16, said="FSDP 8, compiled", layout={}, practice=compiled),
        titan("8B", 128, 5605, batch=256, said="FSDP 128, eager", layout={}, practice=selective),
        titan("8B", 128, 6514, batch=256, said="FSDP 128, compiled", layout={}, practice=compiled),
        titan("70B", 256, 829, batch=512, said="FSDP 32, TP 8, float8", layout={"tensor": 8}, practice=full),
        titan(
            "405B", 512, 100, batch=256, said="FSDP 8, TP 8, PP 8, float8, 1F1B",
            layout=three | {"microbatches": 8}, practice=full | {"tensor_hidden": ASYNC},
        ),
        titan(
            "405B", 512, 128, batch=256, said="FSDP 8, TP 8, PP 8, float8, interleaved 1F1B",
            layout=three | {"microbatches": 8, "schedule": "interleaved_1f1b"},
            practice=full | {"tensor_hidden": ASYNC},
        ),
        mpt("7b", "h100", 8, 10643, micro=6, steps=1, again=False),
        mpt("13b", "h100", 8, 4792, micro=2, steps=1, again=False),
        mpt("13b", "h100", 64, 4800, micro=2, steps=1, again=False),
        mpt("30b", "h100", 32, 2308, micro=14, steps=3, again=True),
        mpt("70b", "h100", 64, 1039, micro=8, steps=4, again=True),
        mpt("7b", "a100", 8, 4641, micro=6, steps=2, again=False),
        mpt("13b", "a100", 8, 2262, micro=2, steps=3, again=False),
        mpt("30b", "a100", 8, 916, micro=3, steps=21, again=True),
        mpt("70b", "a100", 64, 410, micro=8, steps=4, again=True),
        here("float32", 159.8),
        here("tf32", 71.0),
        here("bfloat16", 46.2),
    ]  # fmt: skip


HEAD = """# What `plan --hardware` would have said of published runs

Written by `python -m bench.published`: tokens a second and device. The formulas and profiles are those of
[foresight.md](foresight.md): one curve a device, fitted to none of these. What rtrain does not do itself is put in as
a stated assumption: compiled code leaves 40 % of the bytes and kernels without a product, torchtitan's selective
checkpointing does half of the forward pass again, AsyncTP hides half of the tensor ranks' collectives, and a pipeline
of torchtitan's has as many microbatches as stages.

| run | devices | published | predicted | error | source |
|---|---|---|---|---|---|
"""
TAIL = """
torchtitan's H100s are not the profile's: they were held to 500 W (of 700), and their memory gives 2.4 TB/s (of 3.35).

Not here: MLPerf's DLRM-DCNv2 on 8 H200, of which a look-up found no source to cite with batch and samples a second;
Megatron-LM's tables, which are pictures in its README without their layouts; MaxText's, which were not looked up. The
DLRM step measured on an H100 is left out, because a figure of the profile (`tables_host_s`) was taken from it. So
nothing here says how far off tables are.
"""


def main() -> int:
    """Write the document."""
    parser("bench.published", __doc__).parse_args()
    lines, errors = [], []
    for entry in entries():
        predicted = entry.predicted()
        errors.append(predicted / entry.published - 1)
        lines.append(
            f"| {entry.name} | {entry.devices} x {entry.hardware} | {entry.published:,.0f} | {predicted:,.0f} | "
            f"{errors[-1]:+.0%} | {entry.source} |"
        )
        print(lines[-1], file=sys.stderr, flush=True)
    off = sorted(map(abs, errors))
    said = f"\nOf {len(off)} entries the median error is {statistics.median(off):.0%}, the worst {off[-1]:.0%}.\n"
    OUT.write_text(HEAD + "\n".join(lines) + "\n" + said + TAIL)
    print(said.strip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
