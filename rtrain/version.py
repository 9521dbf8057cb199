"""The one place of the version, and what is said of a record that a newer one wrote."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from rtrain.errors import CheckpointError

VERSION = "0.1.0"


def refuse_newer(where: str, kind: Any, told: Mapping[str, Any]) -> None:
    """Make sure that a dataclass has all fields that a record tells of.

    Raises:
        CheckpointError: it lacks some, which a later rtrain has.
    """
    if unknown := sorted(told.keys() - {one.name for one in fields(kind)}):
        raise CheckpointError(f"{where}: a newer rtrain wrote it, with {', '.join(unknown)}. Update rtrain")
