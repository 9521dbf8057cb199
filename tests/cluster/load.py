"""A steady load on an endpoint: clients that ask one after the other, and what they were answered."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import numpy as np

CLIENTS = 4
KEYS = [f"user-{n}" for n in range(400)]
"""Who asks."""
Ask = Callable[[httpx.Client, np.random.Generator, dict[str, str]], httpx.Response]
"""One request, with these headers, whose answer has the version."""


@dataclass
class Seen:
    """What the clients of a load were answered."""

    statuses: Counter[int] = field(default_factory=Counter)
    """0: none came."""
    versions: dict[str, set[str]] = field(default_factory=dict)
    """Version -> who had it."""

    @property
    def failed(self) -> int:
        return sum(n for status, n in self.statuses.items() if status != 200)


@contextmanager
def load(ask: Ask) -> Iterator[Seen]:
    """Requests of `CLIENTS` clients, one after the other each, until it is left."""
    seen, over, lock = Seen(), threading.Event(), threading.Lock()

    def client(number: int) -> None:
        draw = np.random.default_rng(number)
        with httpx.Client(timeout=60) as http:
            while not over.is_set():
                key = KEYS[draw.integers(len(KEYS))]
                try:
                    answer = ask(http, draw, {"x-rtrain-key": key})
                    status, version = answer.status_code, answer.headers.get("x-rtrain-version", "")
                except httpx.HTTPError:
                    status, version = 0, ""
                with lock:
                    seen.statuses[status] += 1
                    seen.versions.setdefault(version, set()).add(key)

    threads = [threading.Thread(target=client, args=(n,), daemon=True) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join(60)
