"""rtrain against hand-written peers, alternating in one run.

    make bench                                            all of them, 5 pairs each
    make bench ARGS="--only rate --pairs 9 --json"

rate    examples/s of a 2-worker job     rtrain on Ray / a script on torchrun + TorchRec + DDP
memory  peak resident bytes of a worker  the same runs; rtrain's include its final evaluation and checkpoint
start   command to first step            rtrain on Ray / a bare TorchTrainer with the same model

dense   steps/s of a small decoder       recipes/gpt_stdlib.py in one process, eager / a plain torch loop

The first three: DLRM, 26 tables of 100,000 x 16 with table-wise sharding and fused row-wise Adagrad, dense part under
DDP with AdamW, batches of 4096 over 2 workers with one thread each, all from the same Parquet.

Each pair runs both sides one after the other, the first side changing from pair to pair; the
figure is the median of the pairs' ratios, with the smallest and largest beside it. Another process
on the machine widens the spread: repeat with more pairs before believing a single miss.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import sides
from bench.data import write
from bench.ratios import Comparison, Summary, summarise, table
from bench.sides import Measured, Place

HAND, BARE = "torchrun by hand", "bare TorchTrainer"
RATE = Comparison(name="rate", measure="examples/s", against=HAND, at_least=0.97)
MEMORY = Comparison(name="memory", measure="peak bytes of a worker", against=HAND, at_most=1.10)
LOOP = "plain torch loop"
DENSE = Comparison(name="dense", measure="steps/s of a decoder", against=LOOP, at_least=0.97)
START = Comparison(name="start", measure="command to first step", against=BARE, at_most=1.10)


def pairs(
    count: int, ours: Callable[[int], Measured], theirs: Callable[[int], Measured], said: str
) -> tuple[list[Measured], list[Measured]]:
    """`count` pairs, each side first in turn; what each side measured is told on standard error."""
    found: tuple[list[Measured], list[Measured]] = ([], [])
    for i in range(count):
        for side in (1, 0) if i % 2 else (0, 1):
            found[side].append((ours, theirs)[side](i))
        told = "  ".join(f"{k} {found[0][i][k]:.5g} / {v:.5g}" for k, v in found[1][i].items())
        print(f"bench: {said}, pair {i + 1}/{count}: {told}", file=sys.stderr, flush=True)
    return found


def main() -> int:
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, formatter_class=shape)
    parser.add_argument("--pairs", type=int, default=5, help="pairs of each comparison (default 5)")
    parser.add_argument(
        "--only", choices=("rate", "memory", "start", "dense"), help="one comparison (rate and memory share runs)"
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    parser.add_argument("--check", action="store_true", help="exit 1 if a bound is missed")
    options = parser.parse_args()
    if options.pairs < 1:
        parser.error("--pairs: must be at least 1")

    rows: list[Summary] = []
    losses: dict[str, float] = {}
    raw: dict[str, tuple[list[Measured], list[Measured]]] = {}

    def compare(comparison: Comparison, found: tuple[list[Measured], list[Measured]]) -> None:
        raw[comparison.name] = found
        if options.only in (None, comparison.name):
            ours, theirs = ([m[comparison.name] for m in side] for side in found)
            rows.append(summarise(comparison, ours, theirs))

    with (
        tempfile.TemporaryDirectory(prefix="rtrain-bench-") as scratch,
        tempfile.TemporaryDirectory(prefix="rb-", dir="/tmp", ignore_cleanup_errors=True) as ray_temp,
    ):
        folder = Path(scratch)
        place = Place(data=write(folder / "data"), runs=folder / "runs", ray_temp=Path(ray_temp))
        if options.only in (None, "rate", "memory"):
            found = pairs(
                options.pairs,
                lambda i: sides.rtrain(place, steps=sides.STEPS, name=f"rate-{i}"),
                lambda _: sides.handwritten(place, steps=sides.STEPS),
                "rate and memory",
            )
            compare(RATE, found)
            compare(MEMORY, found)
            names = ("rtrain", "by_hand")
            losses = {n: statistics.median(m["loss"] for m in side) for n, side in zip(names, found, strict=True)}
        if options.only in (None, "start"):
            compare(
                START,
                pairs(
                    options.pairs,
                    lambda i: sides.rtrain(place, steps=1, name=f"start-{i}"),
                    lambda _: sides.bare_ray(place),
                    "start",
                ),
            )
        if options.only in (None, "dense"):
            compare(
                DENSE,
                pairs(
                    options.pairs,
                    lambda i: sides.rtrain_dense(place, steps=sides.DENSE_STEPS, name=f"dense-{i}"),
                    lambda _: sides.handwritten_dense(place, steps=sides.DENSE_STEPS),
                    "dense",
                ),
            )
    if options.json:
        print(json.dumps({"ratios": [r.to_json() for r in rows], "losses": losses, "raw": raw}))
    else:
        print(table(rows))
        if losses:
            print(f"training loss at the end: rtrain {losses['rtrain']:.4f}, by hand {losses['by_hand']:.4f}")
    return 1 if options.check and not all(r.holds for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
