"""What an application waits for as it starts: Ray Serve waits for room without end, and tells its own log."""

import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from rtrain.errors import MOST_SAID

LOOK_S = 5.0
"""Seconds between two looks. Serve itself says nothing of the first 30."""
DIED = "its process ended as it loaded: killed, out of memory, or by a crash in compiled code; see its log in Ray's"
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def failure_in(message: str) -> str:
    """The last error in what Serve says of replicas, in one line; empty, if it says of none."""
    lines = [line for text in COLOURS.sub("", message).splitlines() if (line := text.strip())]
    errors = [n for n, line in enumerate(lines) if "Error" in line.partition(":")[0]]
    if not errors:
        return ""
    last = lines[errors[-1]]
    if last == "ActorDiedError()" or "ActorDiedError: The actor died unexpectedly" in last:
        return DIED
    # An error's own further lines are what pydantic, for one, says it with.
    return " ".join(lines[errors[-1] :])[:MOST_SAID]


def what_failed(app: str) -> str:
    """The last error in what Serve says of an application's replicas; empty, if it says of none."""
    found = ray_serve.status().applications.get(app)
    said = [failure_in(one.message) for one in found.deployments.values()] if found else []
    return next(filter(None, said), "")


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
                    why = failure_in(deployment.message)
                    what = f"{deployment.message.partition('Error:')[0]}({why})" if why else deployment.message
                    if (text := " ".join(what.split())) and text not in said:
                        said.add(text)
                        say(f"serve: still starts: {text}")

    thread = threading.Thread(target=watch, name="rtrain-waits", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=LOOK_S)
