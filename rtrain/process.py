"""A question to a process of its own: `python -m MODULE < asked.json` prints one line of JSON at its end.

A model that takes the process down, or never ends, takes down or holds that process alone.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def apart_from_here(
    module: str, asked: Any, deadline_s: float, *, environment: Mapping[str, str] | None = None
) -> tuple[Any, str]:
    """What it says; or, second, why it said nothing. `environment`: what its own has beside this process's."""
    command = [sys.executable, "-m", module]
    try:
        done = subprocess.run(
            command, input=json.dumps(asked), capture_output=True, text=True, timeout=deadline_s,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, f"it had not answered after {deadline_s:g} s"
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
        return None, f"its process ended with {ended}: {last.strip()}"
    return json.loads(done.stdout.splitlines()[-1]), ""
