"""What a step frees is there for the next one: no page is faulted in twice."""

import subprocess
import sys

import pytest

STEPS, TENSORS, BYTES = 20, 16, 4 << 20
SCRIPT = f"""
import resource, sys
import torch
from rtrain.training import heap
if sys.argv[1] == "kept":
    heap.keep_freed()
def step():
    return [torch.ones({BYTES} // 4) for _ in range({TENSORS})]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({STEPS}):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    words = [sys.executable, "-c", SCRIPT, how]
    return int(subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_pages_are_kept_from_step_to_step() -> None:
    pages = STEPS * TENSORS * BYTES // 4096
    # What lies at the top of the heap by chance decides how much is given back, and now and then nothing is.
    provoked = any(faults("as it comes") > pages / 500 for _ in range(8))
    assert provoked, "the pattern no longer provokes what is mended: choose another"
    assert faults("kept") < pages / 5000
