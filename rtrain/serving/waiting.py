"""What an application waits for as it starts: Ray Serve waits for room without end, and tells its own log."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

LOOK_S = 5.0
"""Seconds between two looks. Serve itself says nothing of the first 30."""


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def saying_what_it_waits_for(app: str, say: Callable[[str], None] = _to_stderr) -> Iterator[None]:
    """While an application of that name starts, within; each thing that it waits for is said once."""
    over = threading.Event()

    def watch() -> None:
        said = set[str]()
        while not over.wait(LOOK_S):
            with suppress(RayError, RayServeException, RuntimeError):  # of a Serve that is not up yet, or goes down
                found = ray_serve.status().applications.get(app)
                for deployment in found.deployments.values() if found else ():
                    if (text := " ".join(deployment.message.split())) and text not in said:
                        said.add(text)
                        say(f"serve: still starts: {text}")

    thread = threading.Thread(target=watch, name="rtrain-waits", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=LOOK_S)
