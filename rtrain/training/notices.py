"""Notices of libraries that a person can do nothing about: left out, so that a run's terminal is the run's."""

import logging
import os
import warnings

DEPRECATED = "Please use DTensor instead"
"""torch's words for ShardedTensor, which TorchRec still gives."""


def leave_out() -> None:
    """From here on, in this process."""
    warnings.filterwarnings("ignore", message=DEPRECATED, category=FutureWarning)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # TorchRec asks it the deprecated way
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler tells when it starts and stops
