"""ZeRO-3 in a process that was a stage before, longer than the other rank's: DeepSpeed numbers parameters and modules.

It counts on from run to run, and holds the numbers against those of other ranks. `parity --layouts all` trains so.
"""

from dataclasses import replace

from rtrain.mesh import Parallel
from rtrain.optim import SGD
from tests.parallel.plain import far, plain_rows
from tests.parallel.proved import ENSEMBLE, PARITY
from tests.parallel.worlds import Case, run_cases, tiny

LAYOUTS = {
    "stages": Parallel(data=1, pipeline=2, microbatches=2, zero_stage=3),
    "replicas": Parallel(data=2, zero_stage=3),
}


def test_replicas_after_stages_of_different_lengths(rows: str) -> None:
    run = tiny(rows, Parallel(dense="ddp"), SGD(lr=1.0), config=ENSEMBLE)
    cases: list[Case] = [(name, {"run": replace(run, parallel=layout)}) for name, layout in LAYOUTS.items()]
    found, wanted = run_cases(2, cases), plain_rows(run)[0]
    assert found.keys() == LAYOUTS.keys()
    assert all(far(losses, wanted) < PARITY for losses in found.values()), found
