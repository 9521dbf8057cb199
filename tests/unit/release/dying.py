"""A model that takes its process down when it is built."""

import os
import signal
from dataclasses import dataclass
from typing import Any

from rtrain.models.dlrm import DLRM


@dataclass(frozen=True, kw_only=True)
class Dying(DLRM):
    def build(self, *given: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)
