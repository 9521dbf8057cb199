"""Numbers drawn by a key instead of from a stream: the same for the same key, on any rank, after any resume."""

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]


def mixed(values: Words) -> Words:
    """Sebastiano Vigna's splitmix64: every bit of the result depends on every bit of the value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def drawn(*key: int | NDArray[np.integer]) -> Words:
    """64 random bits for each element of the key's parts broadcast together: uint64 in their shape."""
    bits: Words = np.zeros((), np.uint64)
    for part in key:
        step = np.uint64(0x9E3779B97F4A7C15)
        with np.errstate(over="ignore"):
            bits = mixed(bits * step + np.asarray(part).astype(np.uint64) + step)
    return bits


def uniform(bits: Words) -> NDArray[np.float64]:
    """float64 in [0, 1), of as many bits as it holds."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
