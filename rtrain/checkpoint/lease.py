"""Who may write a run whose storage has no conditional create: one holder at a time, by a file that it renews.

    {run}/checkpoints/commits/lease.json   {"holder": token of the driver, "until": seconds since 1970, ...}

On all other storages the commit log alone decides, and there is no lease.
"""

import os
import socket
import sys
import time

from rtrain.errors import CheckpointError
from rtrain.storage import Folder

LEASE = "lease.json"
LEASE_S = 300.0
"""Seconds after its last sign of life in which a holder keeps the run."""
_told = set[str]()


def take(log: Folder, holder: str) -> None:
    """Hold the run, or hold it on.

    Raises:
        CheckpointError: another one holds it.
    """
    if log.creates_once():
        return
    if log.uri not in _told:
        _told.add(log.uri)
        print(
            f"rtrain: {log.uri}: this storage cannot create a file on the condition that there is none, so two starts "
            f"of the run within one instant may both write it; of others a lease of {LEASE_S:g} s refuses the second",
            file=sys.stderr,
            flush=True,
        )
    there = log.read_json(LEASE) if log.exists(LEASE) else None
    left = there["until"] - time.time() if there else 0.0
    if there and there["holder"] != holder and left > 0:
        raise CheckpointError(
            f"run {log.uri}: process {there['pid']} on {there['node']} holds it for another {left:.0f} s, on a storage "
            f"without a conditional create. Let that one go on, or stop it and wait; if it is gone for certain, "
            f"delete {LEASE} there"
        )
    _write(log, holder)


def renew(log: Folder, holder: str) -> None:
    """A sign of life; whose lease another one has taken since is told by the commit log."""
    if log.creates_once() or not log.exists(LEASE):
        return
    there = log.read_json(LEASE)
    if there["holder"] == holder and there["until"] - time.time() < 0.75 * LEASE_S:
        _write(log, holder)


def release(log: Folder, holder: str) -> None:
    """Let the next one begin at once."""
    if not log.creates_once() and log.exists(LEASE) and log.read_json(LEASE)["holder"] == holder:
        log.discard(LEASE)


def _write(log: Folder, holder: str) -> None:
    until = time.time() + LEASE_S
    log.write_json(LEASE, {"holder": holder, "until": until, "node": socket.gethostname(), "pid": os.getpid()})
