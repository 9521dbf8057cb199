"""Notices of libraries that a person can do nothing about: left out, so that a run's terminal is the run's."""

import logging
import os
import warnings

DEPRECATED = (
    "Please use DTensor instead",  # ShardedTensor, which TorchRec still gives
    "`broadcast_buffers` is deprecated",  # what replaces it is not in the oldest torch that rtrain runs with
    r"`torch\.distributed\.\w+` is deprecated",  # the same
)


def leave_out() -> None:
    """From here on, in this process."""
    for message in DEPRECATED:
        warnings.filterwarnings("ignore", message=message, category=FutureWarning)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # TorchRec asks it the deprecated way
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler tells when it starts and stops
