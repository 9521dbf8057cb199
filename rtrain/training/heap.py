"""How glibc's heap treats what a training process frees.

A step frees and asks for the same tensors again and again. As it comes, glibc gives the top of its heap back to the
system whenever a few megabytes of it are free, and each step faults the same pages in anew: 24 MB a step of SASRec,
a seventh of its time.
"""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD (malloc.h)."""
KEPT = 256 << 20
"""Bytes at the top of the heap that may lie free."""
MAPPED_FROM = 32 << 20
"""Bytes from which on a tensor is mapped by itself, so that freeing it gives it back: the most that glibc allows."""


def keep_freed() -> None:
    """From here on, in this process; nothing where the C library is not glibc."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # musl and macOS have none
    if set_option is not None:
        set_option(_TRIM_THRESHOLD, KEPT)
        set_option(_MMAP_THRESHOLD, MAPPED_FROM)
