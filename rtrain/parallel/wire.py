"""What looked-up vectors and their gradients travel between ranks as, in TorchRec's collectives."""

from typing import Any, cast

from fbgemm_gpu.quantize_comm import QuantizedCommCodec
from fbgemm_gpu.split_embedding_configs import SparseType
from torch import Tensor
from torchrec.distributed.types import CommOp, QuantizedCommCodecs

from rtrain.mesh import Wire

PRECISION = {"float32": SparseType.FP32, "float16": SparseType.FP16, "bfloat16": SparseType.BF16}


class WireCodecs:
    """The codecs of one lookup: of `wire` while it is trained, and none where it is evaluated, whose scores are exact.

    TorchRec's own recipe of them takes float16 for bfloat16 on CPU with a warning, and divides what it has scaled
    before it is float32 again, so that small gradients are lost all the same.
    """

    def __init__(self, wire: Wire, *, rows: int):
        """`rows`: of a global batch; the gradient of their mean is scaled by about as much, lest float16 lose it."""
        # A power of 2, which changes no bit but the exponent.
        self.forward = _Codec(PRECISION[wire])
        self.backward = _Codec(PRECISION[wire], scale=2.0 ** rows.bit_length() if wire == "float16" else 1.0)

    def registry(self) -> dict[str, QuantizedCommCodecs] | None:
        """As TorchRec's sharders take it; none for float32."""
        if self.forward.wire == SparseType.FP32:
            return None
        both = QuantizedCommCodecs(forward=cast(Any, self.forward), backward=cast(Any, self.backward))
        return {op.name: both for op in CommOp}

    def use(self, used: bool) -> None:
        """Whether the lookups from now on travel so, or in float32."""
        self.forward.use(used)


class _Codec(QuantizedCommCodec):
    """fbgemm's, whose range float16 is scaled into and out of in float32."""

    def __init__(self, wire: SparseType, *, scale: float = 1.0):
        super().__init__(wire)
        self.wire, self.scale = wire, scale

    def use(self, used: bool) -> None:
        self._comm_precision = self.wire if used else SparseType.FP32

    def encode(self, input_tensor: Tensor, ctx: Any = None) -> Tensor:
        coded: Tensor = super().encode(input_tensor if self.scale == 1 else input_tensor * self.scale, ctx)
        return coded

    def decode(self, input_tensor: Tensor, ctx: Any = None) -> Tensor:
        plain: Tensor = super().decode(input_tensor, ctx)
        return plain if self.scale == 1 else plain / self.scale
