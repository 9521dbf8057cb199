"""A multiset of sample numbers: small when whole, mergeable, with a hash that adds up.

Level k is the set of samples that came more than k times, as a 64-bit Roaring bitmap
(https://arxiv.org/abs/1603.06549): a full range takes a few bytes, a random half of it a bit a sample,
and a second level exists only where something was repeated.

The hash is the sum, modulo 2**128, of a 128-bit mix of each sample: it does not depend on the order, and
the hash of two multisets together is the sum of theirs. It is reckoned from the numbers themselves as
they come in, not from the bitmaps, so the two are held against one another.
"""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from rtrain.errors import CheckpointError
from rtrain.keyed import mixed

LIMIT = 1 << 128


class Samples:
    """How often each sample came."""

    def __init__(self, levels: Iterable[BitMap64] = (), digest: int = 0):
        self._levels = list(levels)
        self.digest = digest
        """Order-free hash of all that was added, repetitions included."""

    def add(self, samples: NDArray[np.int64]) -> None:
        """Count the samples, int64 [n] of numbers from 0 on, once each time that they come."""
        if not len(samples):
            return
        self.digest = (self.digest + digest_of(samples)) % LIMIT
        unsigned = samples.astype(np.uint64)
        found = _of(unsigned)
        if len(found) == len(unsigned):
            self._raise([found])
            return
        values, counts = np.unique(unsigned, return_counts=True)
        self._raise([_of(values[counts > k]) for k in range(int(counts.max()))])

    def merge(self, other: "Samples") -> None:
        """Count what `other` counted, too; it is left as it is."""
        self._raise([level.copy() for level in other._levels])
        self.digest = (self.digest + other.digest) % LIMIT

    def _raise(self, levels: list[BitMap64]) -> None:
        """Each of `levels` adds one to its samples: what is there already moves a level up."""
        for carried in levels:
            for level in self._levels:
                again = level & carried
                level |= carried
                carried = again
                if not carried:
                    break
            if carried:
                self._levels.append(carried)

    @property
    def count(self) -> int:
        """Samples, each as often as it came."""
        return sum(len(level) for level in self._levels)

    @property
    def levels(self) -> int:
        """How often the sample came that came most often."""
        return len(self._levels)

    @property
    def repeated(self) -> BitMap64:
        """Samples that came more than once."""
        return self._levels[1] if len(self._levels) > 1 else BitMap64()

    def missing(self, expected: range) -> BitMap64:
        """Samples of `expected` that never came."""
        return _bitmap(expected) - self._set()

    def foreign(self, expected: range) -> BitMap64:
        """Samples that came and are none of `expected`."""
        return self._set() - _bitmap(expected)

    def lacks(self, other: "Samples") -> BitMap64:
        """Samples that `other` has and these do not."""
        return other._set() - self._set()

    def recomputed_digest(self) -> int:
        """The hash of what the bitmaps say; equal to `digest` unless one of them is wrong."""
        total = 0
        for level in self._levels:
            total += digest_of(np.asarray(level.to_array(), dtype=np.uint64).astype(np.int64))
        return total % LIMIT

    def _set(self) -> BitMap64:
        return self._levels[0] if self._levels else BitMap64()

    def to_bytes(self) -> list[bytes]:
        """Each level in Roaring's portable format."""
        for level in self._levels:
            level.run_optimize()
        return [level.serialize() for level in self._levels]

    @classmethod
    def from_bytes(cls, levels: Sequence[bytes], digest: int) -> "Samples":
        """What `to_bytes` and `digest` gave.

        Raises:
            CheckpointError: bytes that are no bitmap.
        """
        try:
            return cls([BitMap64.deserialize(level) for level in levels], digest)
        except ValueError as error:
            raise CheckpointError(f"ledger: a level of it is no bitmap ({error})") from error


def digest_of(samples: NDArray[np.int64]) -> int:
    """The order-free hash of samples, int64 [n]: splitmix64 of each with two constants, summed."""
    found = 0
    for number, constant in enumerate((0x9E3779B97F4A7C15, 0xD1B54A32D192ED03)):
        words = mixed(samples.astype(np.uint64) + np.uint64(constant))
        # Summed in halves of 32 bits, so that 2**32 samples at once do not overflow.
        low = int((words & np.uint64(0xFFFFFFFF)).sum(dtype=np.uint64))
        high = int((words >> np.uint64(32)).sum(dtype=np.uint64))
        found += (low + (high << 32)) << (64 * number)
    return found % LIMIT


def digest_of_range(expected: range, *, chunk: int = 1 << 22) -> int:
    """`digest_of` all numbers of a range, without ever holding more than `chunk` of them."""
    total = 0
    for start in range(expected.start, expected.stop, chunk):
        total = (total + digest_of(np.arange(start, min(start + chunk, expected.stop)))) % LIMIT
    return total


def _of(samples: NDArray[np.uint64]) -> BitMap64:
    """Taken from an `array` in half the time that it takes from a numpy array."""
    return BitMap64(array("Q", samples.tobytes()))


def _bitmap(expected: range) -> BitMap64:
    found = BitMap64()
    found.add_range(expected.start, expected.stop)
    return found
