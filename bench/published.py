"""What `plan --hardware` would have said of runs whose speed others have published, beside what they measured.

python -m bench.published          writes docs/foresight_published.md
"""

import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

from bench.asked import parser
from bench.published_runs import Entry, measured, public

OUT = Path(__file__).parents[1] / "docs" / "foresight_published.md"
HEAD = """# What `plan --hardware` would have said of published runs

Written by `python -m bench.published`: units a second and device (of TFLOP: FLOPs by the source's own formula). The
formulas and profiles are those of [foresight.md](foresight.md): one efficiency curve a device, fitted to none of these.
What the formulas count was last changed with 16 of these 40 public entries in sight (torchtitan without its float8 on
8B and AsyncTP on 70B, MPT from 7b at 2,048 tokens); the 24 others came after it.

"""
ROW = "| run | devices | unit | published | predicted | error | source |\n|---|---|---|---|---|---|---|\n"
OURS = """
## Measured by ourselves

On one H100: how attention of float32 and the start of a kernel are counted was looked for because of these. Products of
tf32 have the curve of bfloat16. In bfloat16 7.4 of 46.2 ms were the host's, which waited for the device in each step.

"""
TAIL = """
## What is assumed

What rtrain does not do itself, or a source does not say:

- *Blocks alone* are compiled, checkpointed and in float8; the embedding, the head and the loss are as rtrain does them.
  Compiled code, and Megatron-LM's and HugeCTR's fused kernels, leave 40 % of the bytes and kernels without a product.
- *torchtitan*: its H100s were held to 500 W and have memory of 2.4 TB/s, a profile of its own (`h100_500w`): the peak
  is the data sheet's times (500 / 700) ** (1/3), since power grows as the cube of the clock. Checkpointing by operator
  does every second product again, attention not, and all other kernels. A pipeline has as many microbatches as ranks,
  the default of its code then, and two stages a rank where interleaved. Of float8 only products are faster and gathered
  bytes fewer: casts and their scales are not counted. AsyncTP hides half of the tensor ranks' collectives.
- *LLM Foundry*: MPT's layers are rtrain's, with rotary positions, SwiGLU and a norm of several kernels, where MPT has
  none, GELU and one kernel. So predictions are too low where kernels without products weigh most: the smallest models.
- *Megatron-LM*: microbatches and stages of a rank are those of its examples/sc21/run_table_1.sh; tokens are found from
  the paper's TFLOP/s by its own formula. Attention has no fused kernel: scores are written, read and written by a
  softmax, and by a dropout. Norms are taken to be shared by tensor ranks, which each had done all of them. Ports are of
  200 Gb/s.
- *DLRM-DCNv2*: published is what the log's times say between its evaluations, 16.9 M examples a second in all; with
  them it says 15.0 M (of 14.4 M, which is quoted too, no log was found). The tables are taken to be dealt evenly; of
  the model all but the bottom layers, 1 % of its products; a step is one CUDA graph, so that no host is waited for; but
  nothing that tables send is hidden, as HugeCTR hides it.
- *HSTU*: its layers' kernels are listed by hand, as rtrain's attention over histories is not fused. Lengths are the
  source's distribution, of which each device has its mean; tables, which lie in the hosts' memory, are not counted.

Not here: MaxText's tables, of TPUs, of which rtrain has no profile.
"""


def table(of: Iterable[Entry]) -> str:
    """Rows, and a line with the median and the worst error."""
    lines, errors = [], []
    for entry in of:
        predicted = entry.predicted()
        errors.append(predicted / entry.published - 1)
        digits = 1 if entry.published < 1000 else 0
        lines.append(
            f"| {entry.name} | {entry.devices} x {entry.hardware} | {entry.unit} | {entry.published:,.{digits}f} | "
            f"{predicted:,.{digits}f} | {errors[-1]:+.0%} | {entry.source} |\n"
        )
        print(lines[-1], end="", file=sys.stderr, flush=True)
    off = sorted(map(abs, errors))
    said = f"Of {len(off)} entries the median error is {statistics.median(off):.1%}, the worst {off[-1]:.1%}."
    print(said)
    return ROW + "".join(lines) + f"\n{said}\n"


def main() -> int:
    """Write the document."""
    parser("bench.published", __doc__).parse_args()
    OUT.write_text(HEAD + table(public()) + OURS + table(measured()) + TAIL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
