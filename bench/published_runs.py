"""Runs whose speed others have published, as `plan --hardware` would be asked for them: see `bench.published`.

rtrain cannot do all that these runs did (float8, compiled code, checkpointing by operator), so each is put through the
same formulas with its own `Practice`. A device's curve is one for all entries, and no figure is fitted to any of them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rtrain import (
    AUC,
    Adagrad,
    AdamW,
    Cluster,
    DCNv2,
    Decoder,
    Dense,
    Duration,
    Evaluation,
    Id,
    IdList,
    Interactions,
    Parallel,
    Run,
    Schema,
    TokenLoss,
    Tokens,
)  # fmt: skip
from rtrain.mesh import lay_out
from rtrain.outlook import parts
from rtrain.outlook.collectives import Group
from rtrain.outlook.flops import Counted, Kernel
from rtrain.outlook.kernels import Practice, add, pass_of
from rtrain.outlook.outlook import on_hardware, summed_up
from rtrain.outlook.profile import profile
from rtrain.outlook.step import Stepper

GITHUB = "https://github.com"
TITAN = f"[torchtitan, Dec 2024]({GITHUB}/pytorch/torchtitan/blob/main/benchmarks/llama3_h100_202412_torchtitan.md)"
FOUNDRY = f"[LLM Foundry]({GITHUB}/mosaicml/llm-foundry/blob/main/scripts/train/benchmarking/README.md)"
MEGATRON = "[Narayanan et al., table 1](https://arxiv.org/abs/2104.04473)"
MLPERF = (
    f"[MLPerf Training 4.0]({GITHUB}/mlcommons/training_results_v4.0/blob/main/NVIDIA/results/"
    "h200_ngc24.04_merlin_hugectr/dlrm_dcnv2/result_0.txt)"
)
RECSYS = (
    f"[recsys-examples, its author's fork]({GITHUB}/JacoCheung/recsys-examples/blob/"
    "2df0b6bbd9985660cbbff2f785be3f81cdd42fea/examples/hstu/training/benchmark/E2E_BENCHMARK.md)"
)
HERE = "[measured here](../bench/results/2026-11-28-gpu.md)"
COMPILED = 0.4
"""Of bytes and kernels without a product, what compiled code, or kernels fused by hand, leave: a stated assumption."""
AGAIN = {"recomputed": 1.0, "recomputed_attention": 1.0, "recomputed_others": 1.0}
"""Of blocks whose activations are checkpointed in full."""
SELECTIVE = {"recomputed": 0.5, "recomputed_others": 1.0}
"""As torchtitan checkpoints by operator: every second product again, attention not, all others."""
ASYNC = 0.5
"""Of tensor ranks' collectives, what AsyncTP hides: a stated assumption."""

LLAMA: dict[str, dict[str, int]] = {
    "8B": {"layers": 32, "dim": 4096, "heads": 32, "hidden": 14336},
    "70B": {"layers": 80, "dim": 8192, "heads": 64, "hidden": 28672},
    "405B": {"layers": 126, "dim": 16384, "heads": 128, "hidden": 53248},
}
MPT: dict[str, dict[str, int]] = {
    "125m": {"layers": 12, "dim": 768, "heads": 12},
    "760m": {"layers": 24, "dim": 1536, "heads": 12},
    "1b": {"layers": 24, "dim": 2048, "heads": 16},
    "3b": {"layers": 32, "dim": 2560, "heads": 20},
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
    unit: str
    published: float
    """Units a second of a device."""
    predict: Callable[[], float]

    def predicted(self) -> float:
        """Units a second of a device."""
        return self.predict()


def per_device(hardware: str, devices: int, practice: Practice, **run: Any) -> float:
    """Tokens or examples a second, of a run of these fields."""
    device = profile(hardware)
    made = on_hardware(
        Run(
            name="published", optim=AdamW(), duration=Duration(steps=1), cluster=Cluster(workers=devices),
            **run,
        ),
        device,
    )  # fmt: skip
    mesh = lay_out(made.parallel, devices)
    step = Stepper(run=made, profile=device, practice=practice).step(made.parallel, mesh)
    return summed_up(made, device, mesh, step, price=None).per_second / devices


def decoder(
    name: str, source: str, hardware: str, devices: int, published: float, *,
    model: Decoder, context: int, batch: int, parallel: Parallel, practice: Practice,
) -> Entry:  # fmt: skip
    """Tokens of a decoder."""

    def predict() -> float:
        return per_device(
            hardware, devices, practice, model=model, data=Tokens(source="stdlib", context=context), global_batch=batch,
            parallel=parallel, evaluation=Evaluation(monitor="loss"), metrics=(TokenLoss(),),
        )  # fmt: skip

    return Entry(
        name=name, source=source, hardware=hardware, devices=devices, unit="tokens", published=published,
        predict=predict,
    )  # fmt: skip


def titan(size: str, devices: int, published: float, *, batch: int, said: str, layout: Any, practice: Any) -> Entry:
    """Llama 3.1 on H100s of 500 W with slower memory; sequences of 8,192 tokens."""
    return decoder(
        f"Llama 3.1 {size}, {said}", TITAN, "h100_500w", devices, published,
        model=Decoder(vocab=128256, kv_heads=8, rope_theta=5e5, **LLAMA[size]),
        context=8192,
        batch=batch,
        parallel=Parallel(precision="bfloat16", **{"zero_stage": 3} | layout),
        practice=Practice(hides="all", gathered_bytes=2.0, **practice),
    )  # fmt: skip


def mpt(
    size: str, hardware: str, devices: int, published: float, *, micro: int, steps: int, again: bool = False,
    context: int = 2048, pure: bool = False,
) -> Entry:  # fmt: skip
    """An MPT model under FSDP; `micro` rows `steps` times; `again`: checkpointed; `pure`: gradients are summed in
    16 bits."""
    said = f"{micro} x {steps} rows of {context:,} a device{', checkpointed' if again else ''}"
    return decoder(
        f"MPT {size}, FSDP, {said}", FOUNDRY, hardware, devices, published,
        model=Decoder(vocab=50368, tied=True, **MPT[size]),
        context=context,
        batch=micro * steps * devices,
        parallel=Parallel(precision="bfloat16", zero_stage=3, microbatches=steps),
        practice=Practice(
            hides="all", gathered_bytes=2.0, reduced_bytes=2.0 if pure else 4.0, **AGAIN if again else {}
        ),
    )  # fmt: skip


def megatron(
    size: str, dim: int, layers: int, heads: int, published: float, *,
    tensor: int, pipeline: int, devices: int, batch: int, micro: int, chunks: int = 1,
) -> Entry:  # fmt: skip
    """A GPT model on A100s, sequences of 2,048 tokens, checkpointed in full; `published`: TFLOP/s, by the paper's
    formula, which counts what is done again; `micro` and `chunks` as in Megatron-LM's examples/sc21/run_table_1.sh."""
    flops = 96 * layers * dim**2 * (1 + 2048 / (6 * dim) + 51200 / (16 * layers * dim))
    data = devices // tensor // pipeline
    said = f"DP {data}, TP {tensor}, PP {pipeline}{f' of {chunks} stages a rank' if chunks > 1 else ''}"
    return decoder(
        f"GPT {size}, {said}: {published:g} TFLOP/s", MEGATRON, "a100", devices, published * 1e12 / flops,
        model=Decoder(vocab=51200, tied=pipeline == 1, layers=layers, dim=dim, heads=heads),
        context=2048,
        batch=batch,
        parallel=Parallel(
            precision="bfloat16", dense="ddp", tensor=tensor, pipeline=pipeline,
            microbatches=batch // data // micro,
        ),
        practice=Practice(
            head_dim=dim // heads, fused=COMPILED, reduced_bytes=2.0, chunks=chunks, even=True, **AGAIN
        ),
    )  # fmt: skip


ROWS = (
    40_000_000, 39_060, 17_295, 7_424, 20_265, 3, 7_122, 1_543, 63, 40_000_000, 3_067_956, 405_282, 10, 2_209, 11_938,
    155, 4, 976, 14, 40_000_000, 40_000_000, 40_000_000, 590_152, 12_973, 108, 36,
)  # fmt: skip
"""Of the tables of MLPerf's DLRM-DCNv2."""
IDS = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)
"""Of a row, of each of them."""


def dcnv2(published: float, *, devices: int, batch: int) -> Entry:
    """MLPerf's DLRM-DCNv2 as HugeCTR trains it: a step is one CUDA graph, products and what travels are of 16 bits."""
    lists = (
        IdList(name=f"c{n}", rows=rows, max_length=ids) if ids > 1 else Id(name=f"c{n}", rows=rows)
        for n, (rows, ids) in enumerate(zip(ROWS, IDS, strict=True))
    )
    schema = Schema(features=(*(Dense(name=f"i{n}") for n in range(13)), *lists))

    def predict() -> float:
        return per_device(
            "h200", devices, Practice(graphs=True, fused=COMPILED, hides="all", reduced_bytes=2.0),
            model=DCNv2(dim=128, layers=3, rank=512, deep=(1024, 1024, 512, 256), structure="stacked"),
            data=Interactions(source="criteo", schema=schema),
            sparse_optim=Adagrad(),
            global_batch=batch,
            parallel=Parallel(precision="bfloat16", wire="bfloat16", dense="ddp"),
            evaluation=Evaluation(monitor="auc"),
            metrics=(AUC(),),
        )  # fmt: skip

    return Entry(
        name=f"DLRM-DCNv2, {batch:,} rows a step", source=MLPERF, hardware="h200", devices=devices, unit="examples",
        published=published / devices, predict=predict,
    )  # fmt: skip


ZETA = 5.591582441
"""Riemann's, of 1.2."""


def hstu(published: float, *, devices: int, rows: int = 32, layers: int = 8, dim: int = 1024) -> Entry:
    """NVIDIA's HSTU on H100s: rows of 3 + 2 n tokens, n of a Zipf distribution of 1.2, at most 4,095, and dealt so that
    each device has as much to do; 4 heads of 256. Their kernels, which rtrain's model has not, are listed by hand."""
    chances = {n: n**-1.2 / ZETA for n in range(1, 4095)}
    chances[4095] = 1 - sum(chances.values())
    tokens = rows * sum(p * (3 + 2 * n) for n, p in chances.items())
    pairs = rows * sum(p * ((3 + 2 * n) ** 2 - (2 * n) ** 2 / 2) for n, p in chances.items())

    def product(takes: int, gives: int, of: float = tokens) -> Kernel:
        moved = 2 * (of * takes + takes * gives + of * gives)
        return Kernel(kind="product", bfloat16=True, model_flops=0, flops=2 * of * takes * gives, bytes=moved)

    def moves(numbers: int) -> Kernel:
        return Kernel(kind="other", bfloat16=True, model_flops=0, flops=0, bytes=2 * tokens * numbers)

    attention = Kernel(
        kind="attention", bfloat16=True, model_flops=0, flops=4 * pairs * dim, bytes=2 * tokens * 4 * dim
    )
    layer = (
        moves(2 * dim), product(dim, 4 * dim), moves(8 * dim), attention, moves(3 * dim), product(dim, dim),
        moves(3 * dim),
    )  # fmt: skip
    around = (product(128, dim), moves(2 * dim), product(dim, dim), product(dim, 512, tokens / 2))

    def predict() -> float:
        device, world = profile("h100"), Group(size=devices, per_node=8)
        passes = [
            pass_of(piece(of), device, "bfloat16", Group(size=1, per_node=1), Practice()) for of in (layer, around)
        ]
        forward, backward = (
            add([both[way].times(layers), around_[way]]) for way in (0, 1) for both, around_ in [passes]
        )
        weights = layers * 5 * dim**2
        shared = parts.Shared(parameters=weights, pieces=layers, forward_s=forward.seconds, backward_s=backward.seconds)
        ddp = Parallel(dense="ddp")
        waits = parts.data_s(ddp, shared, world, device, Practice()) + parts.optimizer_s(ddp, weights, devices, device)
        # Their own formula, which leaves out a factor of 256 in the last product.
        counted = layers * (3.5 * 4 * pairs * dim + 3 * 2 * tokens * (4 * dim * dim + 4 * dim) + 3 * tokens * dim)
        return counted / (forward.seconds + backward.seconds + waits) / 1e12

    return Entry(
        name=f"HSTU, {layers} layers of {dim}, {rows} rows a device", source=RECSYS, hardware="h100", devices=devices,
        unit="TFLOP", published=published / devices, predict=predict,
    )  # fmt: skip


def piece(kernels: Iterable[Kernel]) -> Counted:
    """Of kernels listed by hand."""
    return Counted(kernels=tuple(kernels), exchanged=(), parameters=0, saved_bytes=0, received_bytes=0)


def here(precision: Any, milliseconds: float) -> Entry:
    """`bench.step`'s decoder, on one H100."""
    return decoder(
        f"12 layers of 768, {precision}, one rank", HERE, "h100", 1, 8 * 1024 / milliseconds * 1000,
        model=Decoder(vocab=32_000, layers=12, dim=768, heads=12),
        context=1024,
        batch=8,
        parallel=Parallel(dense="ddp", precision=precision),
        practice=Practice(),
    )  # fmt: skip


def public() -> list[Entry]:
    """What others have published."""
    compiled = SELECTIVE | {"fused": COMPILED}
    float8 = {"products": "float8", "gathers": 0.5}
    full = AGAIN | {"fused": COMPILED} | float8
    three = {"tensor": 8, "pipeline": 8, "zero_stage": 2, "microbatches": 8}
    return [
        titan("8B", 8, 5762, batch=16, said="FSDP 8, eager", layout={}, practice=SELECTIVE),
        titan("8B", 8, 6667, batch=16, said="FSDP 8, compiled", layout={}, practice=compiled),
        titan("8B", 128, 5605, batch=256, said="FSDP 128, eager", layout={}, practice=SELECTIVE),
        titan("8B", 128, 6514, batch=256, said="FSDP 128, compiled", layout={}, practice=compiled),
        titan("8B", 8, 8532, batch=16, said="FSDP 8, compiled, float8", layout={}, practice=compiled | float8),
        titan("8B", 128, 8380, batch=256, said="FSDP 128, compiled, float8", layout={}, practice=compiled | float8),
        titan("70B", 256, 829, batch=512, said="FSDP 32, TP 8, float8", layout={"tensor": 8}, practice=full),
        titan(
            "70B", 256, 876, batch=512, said="FSDP 32, TP 8, float8, AsyncTP", layout={"tensor": 8},
            practice=full | {"tensor_hidden": ASYNC},
        ),
        titan(
            "405B", 512, 100, batch=256, said="FSDP 8, TP 8, PP 8, float8, 1F1B",
            layout=three, practice=full | {"tensor_hidden": ASYNC},
        ),
        titan(
            "405B", 512, 128, batch=256, said="FSDP 8, TP 8, PP 8, float8, interleaved 1F1B",
            layout=three | {"schedule": "interleaved_1f1b"}, practice=full | {"tensor_hidden": ASYNC},
        ),
        mpt("760m", "h100", 8, 63147, micro=24, steps=2),
        mpt("1b", "h100", 8, 45455, micro=14, steps=1),
        mpt("3b", "h100", 16, 24142, micro=10, steps=3),
        mpt("7b", "h100", 8, 10643, micro=6, steps=1),
        mpt("7b", "h100", 8, 6935, micro=8, steps=2, again=True, context=8192),
        mpt("13b", "h100", 8, 4792, micro=2, steps=1),
        mpt("13b", "h100", 64, 4800, micro=2, steps=1),
        mpt("30b", "h100", 32, 2308, micro=14, steps=3, again=True),
        mpt("70b", "h100", 64, 1039, micro=8, steps=4, again=True),
        mpt("125m", "a100", 8, 142830, micro=40, steps=2),
        mpt("760m", "a100", 8, 32434, micro=24, steps=2),
        mpt("1b", "a100", 8, 20513, micro=14, steps=4),
        mpt("3b", "a100", 8, 10811, micro=10, steps=2),
        mpt("7b", "a100", 8, 4641, micro=6, steps=2),
        mpt("7b", "a100", 8, 3206, micro=8, steps=2, again=True, context=8192),
        mpt("13b", "a100", 8, 2262, micro=2, steps=3),
        mpt("30b", "a100", 8, 916, micro=3, steps=21, again=True),
        mpt("70b", "a100", 64, 410, micro=8, steps=4, again=True, pure=True),
        megatron("1.7B", 2304, 24, 24, 137, tensor=1, pipeline=1, devices=32, batch=512, micro=16),
        megatron("3.6B", 3072, 30, 32, 138, tensor=2, pipeline=1, devices=64, batch=512, micro=16),
        megatron("7.5B", 4096, 36, 32, 142, tensor=4, pipeline=1, devices=128, batch=512, micro=16),
        megatron("18.4B", 6144, 40, 48, 135, tensor=8, pipeline=1, devices=256, batch=1024, micro=8),
        megatron("39.1B", 8192, 48, 64, 138, tensor=8, pipeline=2, devices=512, batch=1536, micro=4),
        megatron("76.1B", 10240, 60, 80, 140, tensor=8, pipeline=4, devices=1024, batch=1792, micro=2, chunks=3),
        megatron("145.6B", 12288, 80, 96, 148, tensor=8, pipeline=8, devices=1536, batch=2304, micro=2, chunks=2),
        megatron("310.1B", 16384, 96, 128, 155, tensor=8, pipeline=16, devices=1920, batch=2160, micro=1, chunks=2),
        megatron("529.6B", 20480, 105, 128, 163, tensor=8, pipeline=35, devices=2520, batch=2520, micro=1, chunks=3),
        megatron("1008B", 25600, 128, 160, 163, tensor=8, pipeline=64, devices=3072, batch=3072, micro=1),
        dcnv2(16.94e6, devices=8, batch=55_296),
        hstu(4969, devices=16),
    ]  # fmt: skip


def measured() -> list[Entry]:
    """What we have measured ourselves."""
    return [here("float32", 159.8), here("tf32", 71.0), here("bfloat16", 46.2)]


def entries() -> list[Entry]:
    """All of them."""
    return [*public(), *measured()]
