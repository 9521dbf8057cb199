"""What is compared: for each suite, how a pair is run and which of its measures are held against a bound."""

from collections.abc import Callable
from dataclasses import dataclass

from bench import sides
from bench.ratios import Comparison
from bench.sides import Measured, Place


@dataclass(frozen=True, kw_only=True)
class Suite:
    """`ours` and `theirs` make one run each, given a name that no run before had; or `together` as many pairs as it is
    told, of sides that stay up while they alternate."""

    name: str
    comparisons: tuple[Comparison, ...]
    ours: Callable[[Place, str], Measured] | None = None
    theirs: Callable[[Place, str], Measured] | None = None
    together: Callable[[Place, int], tuple[list[Measured], list[Measured]]] | None = None


def _rate(name: str, measure: str, against: str, at_least: float) -> tuple[Comparison, ...]:
    return (Comparison(name=name, of="rate", measure=measure, against=against, at_least=at_least),)


HAND, SERVE = "torchrun by hand", "bare Serve deployment"
RATE = Comparison(name="rate", measure="examples/s", against=HAND, at_least=0.97)
MEMORY = Comparison(name="memory", measure="peak bytes of a worker", against=HAND, at_most=1.10)
START = Comparison(name="start", measure="command to first step", against="bare TorchTrainer", at_most=1.10)


def _zero_bytes(stage: int) -> Suite:
    """Nothing in it is left to chance, so the formula is measured again with each pair."""
    name = f"zero_bytes_{stage}"
    compared = Comparison(
        name=name, of="bytes", measure=f"bytes of a rank, ZeRO-{stage}, 2 ranks", against="the formula"
    )
    return Suite(
        name=name,
        comparisons=(compared,),
        ours=lambda place, _: {"bytes": sides.zero_bytes(place, stage)["held"]},
        theirs=lambda place, _: {"bytes": sides.zero_bytes(place, stage)["ideal"]},
    )


SUITES = (
    Suite(
        name="job",
        comparisons=(RATE, MEMORY),
        ours=lambda place, name: sides.job(place, steps=sides.STEPS, name=name),
        theirs=lambda place, _: sides.handwritten(place, steps=sides.STEPS, workers=2),
    ),
    Suite(
        name="overlap",
        comparisons=(
            Comparison(name="overlap", of="rate", measure="examples/s, 2 workers", against="without overlap"),
        ),
        ours=lambda place, name: sides.job(place, steps=sides.STEPS, name=f"{name}-overlap"),
        theirs=lambda place, name: sides.job(place, steps=sides.STEPS, name=f"{name}-plain", overlap=False),
    ),
    Suite(
        name="start",
        comparisons=(START,),
        ours=lambda place, name: sides.job(place, steps=1, name=name),
        theirs=lambda place, _: sides.bare_ray(place),
    ),
    Suite(
        name="alone",
        comparisons=_rate("alone", "examples/s, one process", "bare TorchRec loop", 0.97),
        ours=lambda place, name: sides.job_alone(place, steps=sides.STEPS, name=name),
        theirs=lambda place, _: sides.handwritten(place, steps=sides.STEPS, workers=1),
    ),
    Suite(
        name="bags",
        comparisons=_rate("bags", "examples/s, one process", "EmbeddingBag + SparseAdam", 1.8),
        ours=lambda place, name: sides.job_alone(place, steps=sides.STEPS, name=name),
        theirs=lambda place, _: sides.embedding_bags(place, steps=sides.STEPS),
    ),
    Suite(
        name="reader",
        comparisons=(
            Comparison(
                name="reader", of="step", measure="CPU of reading a step", against="a step by hand", at_most=0.10
            ),
        ),
        ours=lambda place, _: sides.reading(place, 1),
        theirs=lambda place, _: sides.step_by_hand(place),
    ),
    Suite(
        name="reader_ranks",
        comparisons=_rate("reader_ranks", "rows/s of 4 ranks, by CPU", "one rank", 3.2),
        ours=lambda place, _: sides.reading(place, 4),
        theirs=lambda place, _: sides.reading(place, 1),
    ),
    Suite(
        name="first_weights",
        comparisons=_rate("first_weights", "GB/s of a fresh table, a core", "1", 1.0),
        ours=lambda place, _: sides.first_weights(place),
        theirs=lambda _, __: {"rate": 1.0},
    ),
    Suite(
        name="stall",
        comparisons=(
            Comparison(name="stall", measure="wait for checkpoints", against="the same, synchronous", at_most=0.10),
        ),
        ours=lambda place, name: sides.stall(place, name=f"{name}-background", background=True),
        theirs=lambda place, name: sides.stall(place, name=f"{name}-waiting", background=False),
    ),
    Suite(
        name="dense",
        comparisons=_rate("dense", "steps/s of a decoder", "plain torch loop", 0.97),
        ours=lambda place, name: sides.decoder(place, name=name, workers=1),
        theirs=lambda place, _: sides.decoder_by_hand(place, workers=1),
    ),
    Suite(
        name="zero",
        comparisons=_rate("zero", "steps/s, ZeRO-1, 2 ranks", "bare DeepSpeed", 0.97),
        ours=lambda place, name: sides.decoder(place, name=name, workers=2),
        theirs=lambda place, _: sides.decoder_by_hand(place, workers=2),
    ),
    Suite(
        name="catalogue",
        comparisons=_rate("catalogue", "users/s, all items ranked", "a loop over users", 2.0),
        ours=lambda place, _: sides.catalogue(place, "ours"),
        theirs=lambda place, _: sides.catalogue(place, "loop"),
    ),
    Suite(
        name="catalogue_floor",
        comparisons=_rate("catalogue_floor", "users/s, all items ranked", "bare matmul + top-k", 1 / 1.3),
        ours=lambda place, _: sides.catalogue(place, "ours"),
        theirs=lambda place, _: sides.catalogue(place, "bare"),
    ),
    Suite(
        name="evaluation",
        comparisons=_rate("evaluation", "users/s, a run's evaluation", "a loop over users", 2.0),
        ours=lambda place, _: sides.catalogue(place, "run"),
        theirs=lambda place, _: sides.catalogue(place, "loop"),
    ),
    Suite(
        name="evaluation_floor",
        comparisons=_rate("evaluation_floor", "users/s, a run's evaluation", "bare matmul + top-k", 1 / 1.3),
        ours=lambda place, _: sides.catalogue(place, "run"),
        theirs=lambda place, _: sides.catalogue(place, "bare"),
    ),
    Suite(
        name="gauc",
        comparisons=_rate("gauc", "groups/s of GAUC", "a loop over groups", 2.0),
        ours=lambda place, _: sides.gauc(place, "ours"),
        theirs=lambda place, _: sides.gauc(place, "loop"),
    ),
    Suite(
        name="hstu",
        comparisons=_rate("hstu", "steps/s of HSTU, jagged", "the same, padded", 1.5),
        ours=lambda place, name: sides.histories(place, name=f"{name}-jagged", attention="jagged"),
        theirs=lambda place, name: sides.histories(place, name=f"{name}-padded", attention="padded"),
    ),
    Suite(
        name="sasrec",
        comparisons=_rate("sasrec", "steps/s of SASRec", "plain torch loop", 0.97),
        ours=lambda place, name: sides.sasrec(place, name=name),
        theirs=lambda place, _: sides.sasrec_by_hand(place),
    ),
    Suite(
        name="serve",
        comparisons=(
            Comparison(name="serve", of="cpu", measure="CPU of a request", against=SERVE, at_most=1.15),
            Comparison(name="serve_p50", of="p50", measure="p50 of a request", against=SERVE),
            Comparison(name="serve_p99", of="p99", measure="p99 of a request", against=SERVE),
            Comparison(name="serve_by_hand", measure="CPU of a request", against="FastAPI + ONNX Runtime"),
        ),
        together=sides.serving,
    ),
    Suite(
        name="program",
        comparisons=_rate("program", "1-row predict/s, compiled", "the export's eager", 2.0),
        together=sides.programs,
    ),
    Suite(
        name="index",
        comparisons=(
            Comparison(name="index", measure="CPU ms, best 10 of 1,000,000", against="2 ms", at_most=1.0),
            Comparison(name="index_bare", measure="CPU ms, best 10 of 1,000,000", against="bare matmul + top-k"),
            Comparison(name="index_recall", measure="recall@10 of it", against="all items compared", at_least=0.99),
        ),
        together=sides.nearest,
    ),
    *(_zero_bytes(stage) for stage in (1, 2, 3)),
)
