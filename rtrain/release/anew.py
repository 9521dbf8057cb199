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
BLOCK = 4096
"""Rows that are computed at once."""


@dataclass(frozen=True)
class Said:
    """Of each row."""

    error: str = ""
    """Why it could not be asked; empty: it could."""
    outputs: Sequence[Sequence[float] | None] = ()
    """Logits, or numbers, of each label; none of a row that it refuses."""
    refused: str = ""
    """Why it refuses the first of those."""


def said_of(export: str, rows: Sequence[Mapping[str, Any]], *, modules: Sequence[str] = ()) -> Said:
    """Ask a ranking model's export; keys that it does not know are left out.

    Args:
        export: its folder.
        rows: requests, as those of another model.
        modules: of a model of one's own, imported here, which the process imports first.
    """
    prepare(export)
    asked = {"export": export, "rows": list(rows), "modules": list(modules)}
    told, error = apart_from_here("rtrain.release.anew", asked, DEADLINE_S)
    return Said(error=error) if error else Said(**told)


def main() -> None:
    """What the process does."""
    asked = json.load(sys.stdin)
    try:
        for name in asked["modules"]:
            import_module(name)
        found = _ask(asked["export"], asked["rows"])
    except RtrainError as error:
        found = Said(error=one_line(error))
    print(json.dumps(asdict(found)))


def _ask(export: str, rows: list[dict[str, Any]]) -> Said:
    import torch
    from pydantic import ValidationError

    from rtrain.export.artifact import Predictor

    torch.set_num_threads(1)
    predictor = Predictor(export)
    known, taken, refused = set(predictor.rows.model_fields), list[tuple[int, dict[str, Any]]](), ""
    for number, row in enumerate(rows):
        try:
            one = predictor.rows.model_validate({key: value for key, value in row.items() if key in known})
            taken.append((number, one.model_dump()))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            refused = refused or f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    outputs: list[list[float] | None] = [None] * len(rows)
    with torch.inference_mode():
        for start in range(0, len(taken), BLOCK):
            some = taken[start : start + BLOCK]
            found = predictor.computed(predictor.asks([row for _, row in some]))
            for (number, _), of in zip(some, found.double().reshape(len(some), -1).tolist(), strict=True):
                outputs[number] = of
    return Said("", outputs, refused)


if __name__ == "__main__":
    main()
