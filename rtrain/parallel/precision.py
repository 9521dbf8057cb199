"""How float32 matrices are multiplied on a GPU: exactly so, or as NVIDIA's tf32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rtrain.mesh import Precision


@contextmanager
def multiplied_as(precision: Precision) -> Iterator[None]:
    """As `Parallel.precision` says, forward and backward; what the process had is put back.

    bfloat16 is autocast's, in `rtrain.parallel.stage`: what it leaves as float32 is multiplied as that. cuDNN, which
    computes recurrent layers, would take tf32 unless told.
    """
    had = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(had[0])
        torch.backends.cudnn.allow_tf32 = had[1]
