"""The head of an export, which says of all else."""

from typing import Any

from rtrain.errors import CheckpointError
from rtrain.storage import Folder

HEAD = "export.json"


def head_in(folder: Folder) -> dict[str, Any]:
    """What a head says, if it has what every head has.

    Raises:
        CheckpointError: it has not.
    """
    try:
        head = folder.read_json(HEAD)
    except ValueError as error:
        raise CheckpointError(f"export {folder.uri!r}: {HEAD} is no JSON ({error}). Export the run again") from None
    kinds = {"format": int, "files": dict, "model": dict}
    said = head if isinstance(head, dict) else {}
    if lacking := [name for name, kind in kinds.items() if not isinstance(said.get(name), kind)]:
        raise CheckpointError(f"export {folder.uri!r}: {HEAD} lacks {', '.join(lacking)}. Export the run again")
    return said
