"""The steps of `rtrain init`: look, refuse what cannot be, write the data where that is needed, write the recipe."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtrain.data import cached
from rtrain.data.holdout import Random
from rtrain.data.parquet import ParquetRows
from rtrain.data.split import ByTime
from rtrain.errors import DataError, UserError
from rtrain.starter import guess
from rtrain.starter.prepare import prepare
from rtrain.starter.recipe import recipe_text
from rtrain.starter.table import given


@dataclass(frozen=True)
class Started:
    """What `rtrain init` wrote and what it took the columns for."""

    recipe: str
    """Path of the recipe."""
    data: str
    """What the recipe reads."""
    label: str
    """Column of 0 and 1."""
    time: str
    """Column that orders the rows."""
    done: tuple[str, ...]
    """What was changed to make the data from the user's file."""
    columns: tuple[guess.Column, ...]
    """Every other column."""

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        return {
            "recipe": self.recipe,
            "data": self.data,
            "label": self.label,
            "time": self.time,
            "done": list(self.done),
            "features": {c.name: c.kind for c in self.columns if c.kind},
            "left_out": {c.name: c.why for c in self.columns if not c.kind},
        }

    def __str__(self) -> str:
        lines = [f"data      {self.data}" + (f" ({'; '.join(self.done)})" if self.done else "")]
        lines += [f"label     {self.label}", f"time      {self.time or 'none: chance parts the rows'}"]
        lines += [f"{c.kind or 'left out':<9} {c.name}: {c.why}" for c in self.columns]
        return "\n".join([*lines, f"{self.recipe} is written. Read it, then: python {self.recipe} train --debug"])


def start(source: str, *, label: str = "", out: str = "recipe.py", data_out: str = "") -> Started:
    """Write a commented recipe for a CSV, TSV, JSON-lines or Parquet file, or a folder of Parquet files.

    The data is written anew, as Parquet, only where a run could not read it as it is: `data_out`, by default beside it.

    Raises:
        UserError: a file that would be overwritten, or data that no recipe could be written for; nothing was written.
    """
    recipe = Path(out)
    _refuse_overwriting(recipe, "--out")
    opened = given(source)
    prepared = prepare(opened, label)
    columns = tuple(guess.columns(prepared.data, prepared.taken))
    if not any(c.kind not in ("", "Dense") for c in columns):
        raise DataError(
            f"{source}: no column is a user, an item or a category, which rtrain's models look up in tables. Name one "
            "so that it ends with _id, or give words"
        )
    data = source if prepared.table is None else _place(source, opened.is_parquet, data_out)
    if prepared.table is not None:
        cached.write(prepared.table, Path(data), version=1)
    try:
        (ByTime() if prepared.time else Random()).part(ParquetRows(data), prepared.time)
    except DataError:
        if prepared.table is not None:
            Path(data).unlink()
        raise
    made = Started(str(recipe), data, prepared.label, prepared.time, prepared.done, columns)
    try:
        recipe.parent.mkdir(parents=True, exist_ok=True)
        with recipe.open("x", encoding="utf-8") as file:
            file.write(recipe_text(recipe, data, prepared, columns))
    except OSError as error:
        raise UserError(f"--out: {recipe} cannot be written ({error.strerror})") from None
    return made


def _place(source: str, is_parquet: bool, data_out: str) -> str:
    """Where prepared data goes."""
    path = Path(source.rpartition("://")[2] if "://" in source else source)
    here = Path() if "://" in source else path.parent
    placed = Path(data_out) if data_out else here / f"{path.stem}{'-prepared' if is_parquet else ''}.parquet"
    _refuse_overwriting(placed, "--data-out")
    if placed.suffix != ".parquet":
        raise UserError(f"--data-out: {placed} must end with .parquet")
    if not os.access(next(p for p in [placed.parent, *placed.absolute().parents] if p.exists()), os.W_OK):
        raise UserError(f"--data-out: the folder of {placed} cannot be written to. Name another place with --data-out")
    return str(placed)


def _refuse_overwriting(path: Path, option: str) -> None:
    if path.exists():
        raise UserError(f"{path} is there already and stays as it is. Name another with {option}, or move it away")
