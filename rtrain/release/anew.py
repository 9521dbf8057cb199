"""What an export says of rows that its own run was not tested by, in a process of its own.

python -m rtrain.release.anew < asked.json      prints it as one line of JSON
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from rtrain.errors import RtrainError, one_line
from rtrain.export.artifact import prepare
from rtrain.process import apart_from_here

DEADLINE_S = 1800.0
AT_ONCE, WHOM_AT_ONCE = 4096, 256
"""Rows that are computed at once, and who asks."""


@dataclass(frozen=True)
class Said:
    """Of each row."""

    error: str = ""
    """Why it could not be asked; empty: it could."""
    outputs: Sequence[Sequence[float] | None] = ()
    """Logits, or numbers, of each label; none of a row that it refuses."""
    refused: str = ""
    """Why it refuses the first of those."""


@dataclass(frozen=True)
class Found:
    """Of each who asks."""

    error: str = ""
    """As of `Said`."""
    lists: Sequence[Sequence[Any]] = ()
    """Items, best first."""
    unknown: int = 0
    """Who asked and is not known to it: they were offered the items that are most popular."""


def found_of(export: str, whom: Sequence[Mapping[str, Any]], depth: int, *, modules: Sequence[str] = ()) -> Found:
    """Ask a retrieval model's export; an index that it has answers, as it does where it is served.

    Args:
        export: its folder.
        whom: `whom`, `seen` and, of timed histories, `times` each, as another model is asked.
        depth: items of each.
        modules: as `said_of`.
    """
    asked = {"export": export, "rows": list(whom), "depth": depth, "modules": list(modules)}
    told, error = apart_from_here("rtrain.release.anew", asked, DEADLINE_S)
    return Found(error=error) if error else Found(**told)


def said_of(export: str, rows: Sequence[Mapping[str, Any]], *, modules: Sequence[str] = ()) -> Said:
    """Ask a ranking model's export.

    Args:
        export: its folder.
        rows: requests.
        modules: of a model of one's own, imported here, which the process imports first.
    """
    prepare(export)
    asked = {"export": export, "rows": list(rows), "modules": list(modules)}
    told, error = apart_from_here("rtrain.release.anew", asked, DEADLINE_S)
    return Said(error=error) if error else Said(**told)


def main() -> None:
    """What the process does."""
    import torch

    torch.set_num_threads(1)
    asked = json.load(sys.stdin)
    depth = asked.get("depth")
    found: Said | Found
    try:
        for name in asked["modules"]:
            import_module(name)
        found = _find(asked["export"], asked["rows"], depth) if depth else _score(asked["export"], asked["rows"])
    except RtrainError as error:
        found = (Found if depth else Said)(error=one_line(error))
    print(json.dumps(asdict(found)))


def _find(export: str, rows: list[dict[str, Any]], depth: int) -> Found:
    from rtrain.export.encoders import Encoders

    encoders, lists, unknown = Encoders(export), list[list[Any]](), 0
    for start in range(0, len(rows), WHOM_AT_ONCE):
        some = rows[start : start + WHOM_AT_ONCE]
        times = [row.get("times", []) for row in some] if encoders.timed else None
        whom, seen = [row["whom"] for row in some], [row["seen"] for row in some]
        asked = encoders.ask(whom, times, seen, unknown="popular")
        unknown += int(asked.strangers.sum())
        lists += [[item for item, _ in of] for of in encoders.find(asked, depth)]
    return Found("", lists, unknown)


def _score(export: str, rows: list[dict[str, Any]]) -> Said:
    import torch
    from pydantic import ValidationError

    from rtrain.export.artifact import Predictor

    predictor = Predictor(export)
    taken, refused = list[tuple[int, dict[str, Any]]](), ""
    for number, row in enumerate(rows):
        try:
            taken.append((number, predictor.rows.model_validate(row).model_dump()))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            refused = refused or f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    outputs: list[list[float] | None] = [None] * len(rows)
    with torch.inference_mode():
        for start in range(0, len(taken), AT_ONCE):
            some = taken[start : start + AT_ONCE]
            found = predictor.computed(predictor.asks([row for _, row in some]))
            for (number, _), of in zip(some, found.double().reshape(len(some), -1).tolist(), strict=True):
                outputs[number] = of
    return Said("", outputs, refused)


if __name__ == "__main__":
    main()
