"""rtrain against hand-written peers, alternating in one run.

    make bench                                            all of them, 5 pairs each
    make bench ARGS="--only rate --pairs 9 --json"

rate    examples/s of a 2-worker job     rtrain on Ray / a script on torchrun + TorchRec + DDP
memory  peak resident bytes of a worker  the same runs; rtrain's include its final evaluation and checkpoint
overlap  examples/s of the same job       ids of the next batch sent beside a step / not (no bound: cores decide)
start   command to first step            rtrain on Ray / a bare TorchTrainer with the same model
alone   examples/s of one process        rtrain without Ray / the script on one rank
bags    examples/s of one process        rtrain without Ray / plain torch: nn.EmbeddingBag + SparseAdam
reader  CPU seconds of reading a step    rows that do not fit the window / a step of the script on one rank
reader_ranks  rows/s by CPU              4 ranks, each its own share / one rank
first_weights  GB/s of a fresh table     a core / 1 GB/s
stall   wait for checkpoints             written behind training / while it waits (177 MB every 40 steps)
dense   steps/s of a small decoder       recipes/gpt_stdlib.py in one process, eager / a plain torch loop
zero    the same on 2 ranks, ZeRO-1      the recipe under torchrun / bare DeepSpeed under torchrun
catalogue  users/s, 100,000 items each   rank_catalogue / a loop over users; _floor: / bare matmul + top-k
evaluation  users/s of the same          a run's whole evaluation / a loop over users; _floor: / matmul + top-k
gauc    groups/s of GAUC, 400,000 groups GAUC / a loop over groups
hstu    steps/s of HSTU, one process     in groups of similar length / all rows as long as the longest
sasrec  steps/s of SASRec, one process   rtrain without Ray / a plain torch loop over padded arrays
serve   CPU and seconds of a request     rtrain serve / a bare Serve deployment; _by_hand: / FastAPI + ONNX Runtime
program  1-row predicts/s of an export    compiled / eager
index   CPU ms, best 10 of 1,000,000     an export's index / 2 ms; _bare: / matmul + top-k; _recall: / all compared
zero_bytes_1, _2, _3                     what a rank of 2 holds / the ZeRO paper's formula for float32 (no bound)

The first six: DLRM, 26 tables of 100,000 x 16 with table-wise sharding and fused row-wise Adagrad, dense part under
DDP with AdamW, batches of 4096 with one thread a process, all from the same Parquet.

Each pair runs both sides one after the other, the first side changing from pair to pair; the
figure is the median of the pairs' ratios, with the smallest and largest beside it. Another process
on the machine widens the spread: repeat with more pairs before believing a single miss.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.asked import parser
from bench.data import write
from bench.ratios import Summary, summarise, table
from bench.sides import Measured, Place
from bench.suites import SUITES, Suite


def pairs(
    count: int, ours: Callable[[int], Measured], theirs: Callable[[int], Measured], said: str
) -> tuple[list[Measured], list[Measured]]:
    """`count` pairs, each side first in turn; what each side measured is told on standard error."""
    found: tuple[list[Measured], list[Measured]] = ([], [])
    for i in range(count):
        for side in (1, 0) if i % 2 else (0, 1):
            found[side].append((ours, theirs)[side](i))
        told = "  ".join(f"{k} {found[0][i][k]:.5g} / {v:.5g}" for k, v in found[1][i].items() if k in found[0][i])
        print(f"bench: {said}, pair {i + 1}/{count}: {told}", file=sys.stderr, flush=True)
    return found


def _measured(suite: Suite, place: Place, count: int) -> tuple[list[Measured], list[Measured]]:
    if suite.together:
        return suite.together(place, count)
    assert suite.ours and suite.theirs, suite.name
    ours, theirs = (partial(_named, run, place, suite.name) for run in (suite.ours, suite.theirs))
    return pairs(count, ours, theirs, suite.name)


def _named(run: Callable[[Place, str], Measured], place: Place, suite: str, i: int) -> Measured:
    return run(place, f"{suite}-{i}")


def main() -> int:
    asking = parser("bench", __doc__)
    asking.add_argument("--pairs", type=int, default=5, help="pairs of each comparison (default 5)")
    names = [c.name for suite in SUITES for c in suite.comparisons]
    asking.add_argument("--only", choices=names, help="one comparison (rate and memory share runs)")
    asking.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    asking.add_argument("--check", action="store_true", help="exit 1 if a bound is missed")
    options = asking.parse_args()
    if options.pairs < 1:
        asking.error("--pairs: must be at least 1")

    rows: list[Summary] = []
    losses: dict[str, dict[str, float]] = {}
    raw: dict[str, tuple[list[Measured], list[Measured]]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="rtrain-bench-") as scratch,
        tempfile.TemporaryDirectory(prefix="rb-", dir="/tmp", ignore_cleanup_errors=True) as ray_temp,
    ):
        folder = Path(scratch)
        place = Place(data=write(folder / "data"), runs=folder / "runs", ray_temp=Path(ray_temp))
        for suite in SUITES:
            wanted = [c for c in suite.comparisons if options.only in (None, c.name)]
            if not wanted:
                continue
            found = raw[suite.name] = _measured(suite, place, options.pairs)
            for comparison in wanted:
                sides = ([m[comparison.of or comparison.name] for m in side] for side in found)
                rows.append(summarise(comparison, *sides))
            if "loss" in found[0][0] and "loss" in found[1][0]:
                of = zip(("rtrain", "by_hand"), found, strict=True)
                losses[suite.name] = {name: statistics.median(m["loss"] for m in side) for name, side in of}
    if options.json:
        print(json.dumps({"ratios": [r.to_json() for r in rows], "losses": losses, "raw": raw}))
    else:
        print(table(rows))
        for name, loss in losses.items():
            print(f"training loss at the end, {name}: rtrain {loss['rtrain']:.4f}, by hand {loss['by_hand']:.4f}")
    return 1 if options.check and not all(r.holds for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
