"""Watches the head of the Ray that this process is joined to.

Ray's client waits 60 s (`RAY_gcs_rpc_server_reconnect_timeout_s`) for a head that is away, as one that is started anew,
and then ends the process from C++, whatever it was doing: what there is to say has to be said before.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from rtrain import last_words

ASK_S, ANSWER_S = 2.0, 5.0
"""Seconds between two questions, and for which an answer is waited for."""
SAY_S = 5.0
"""Seconds after which it is said that a head is waited for."""
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
BEFORE_S = 8.0
"""Seconds by which this is quicker than Ray's client, which counts from its own first question."""


@contextmanager
def watched_head() -> Iterator[None]:
    """While this lasts, a head that stays away ends the process by its last words."""
    address = ray.get_runtime_context().gcs_address
    left = threading.Event()
    threading.Thread(target=_watch, args=(address, left), name="rtrain-head", daemon=True).start()
    try:
        yield
    finally:
        left.set()


def _watch(address: str, left: threading.Event) -> None:
    most = max(ASK_S, float(os.environ.get(RECONNECT) or 60) - BEFORE_S)
    answered, said = time.monotonic(), False
    while not left.wait(ASK_S):
        asked = time.monotonic()
        if _answers(address):
            answered, said = time.monotonic(), False
            continue
        away = asked - answered
        if away > SAY_S and not said and not left.is_set():
            said = True
            _say(f"Ray's head at {address} does not answer; it is waited for, {most:g} s in all")
        if away > most and not left.is_set():
            why = f"Ray's head at {address} has not answered for {away:.0f} s. Start it again"
            if not last_words.end(why):
                _say(f"{why}; Ray's client ends this process")
            return


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except OSError:
        return False
    return True


def _say(text: str) -> None:
    print(f"rtrain: {text}", file=sys.stderr, flush=True)
