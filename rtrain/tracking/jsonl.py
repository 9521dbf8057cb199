"""metrics.jsonl: one object a line, for tools that want a plain file."""

import json
import math
import os
from collections.abc import Mapping

from rtrain.tracking.protocol import Opening
from rtrain.tracking.workspace import Workspace


class JsonLines:
    """Lines `{"step": 40, "train/loss": 0.61}` and, at the end, `{"summary": {...}}`."""

    def __init__(self, opening: Opening):
        self.place = Workspace(opening.folder, "metrics.jsonl")
        self.place.fetch()
        self._cut(opening.resume_step)
        self.file = open(self.place.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed by close()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A line, on disk when this returns (as far as the system's cache)."""
        self._write({"step": step, **_plain(values)})
        self.place.copy_if_due(self.file.flush)

    def flush(self) -> None:
        """Into the file."""
        self.file.flush()

    def finish(self, summary: Mapping[str, float]) -> None:
        """The last line."""
        self._write({"summary": _plain(summary)})
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.file.close()
        self.place.close()

    def _write(self, line: Mapping[str, object]) -> None:
        self.file.write(json.dumps(line) + "\n")

    def _cut(self, step: int) -> None:
        """Drop the steps that will be taken again, a summary, and a line that a crash cut off."""
        path = self.place.path
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if _is_up_to(line, step)]
        temporary = path.with_name(f".{path.name}.part")
        with open(temporary, "w", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in kept))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def _is_up_to(line: str, step: int) -> bool:
    try:
        return int(json.loads(line)["step"]) <= step
    except (ValueError, KeyError, TypeError):
        return False


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    # JSON has no NaN and no infinity.
    return {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
