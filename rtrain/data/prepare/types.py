"""What a column's values are, from all of them, and the type that holds them.

A first few thousand rows do not decide: of text each value's kind is counted, and files of one folder are held against
each other.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from rtrain.data.duck import quoted
from rtrain.data.prepare.config import Prepare
from rtrain.errors import DataError, did_you_mean

INT, UNSIGNED, FLOAT, BOOL, TIME, WORD, MIXED = "int", "unsigned", "float", "bool", "time", "word", "mixed"
SAID = {
    INT: "whole numbers", UNSIGNED: "whole numbers above 2^63", FLOAT: "numbers", BOOL: "true and false",
    TIME: "times", WORD: "words", MIXED: "values of several kinds",
}  # fmt: skip
NUMBERS = {INT, UNSIGNED, FLOAT, BOOL}


def kind_of_text(name: str) -> str:
    """SQL of the kind of each value of a column of text. A number with leading zeros is a word: they would be lost."""
    c = quoted(name)
    return (
        f"CASE WHEN {c} IS NULL THEN NULL WHEN CAST(try_cast({c} AS BIGINT) AS VARCHAR) = {c} THEN '{INT}' "
        f"WHEN CAST(try_cast({c} AS UBIGINT) AS VARCHAR) = {c} THEN '{UNSIGNED}' "
        f"WHEN try_cast({c} AS DOUBLE) IS NOT NULL AND NOT regexp_matches({c}, '^[-+]?0[0-9]|[^-+.0-9eE]') "
        f"THEN '{FLOAT}' "
        f"WHEN lower({c}) IN ('true', 'false') THEN '{BOOL}' "
        f"WHEN regexp_matches({c}, '^[0-9]') AND try_cast({c} AS TIMESTAMPTZ) IS NOT NULL THEN '{TIME}' "
        f"ELSE '{WORD}' END"
    )


def kind_of_type(kind: str) -> str:
    """The kind of a column of this SQL type; of what is nested its type itself."""
    if kind in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"):
        return INT
    if kind == "UBIGINT":
        return UNSIGNED
    if kind in ("FLOAT", "DOUBLE", "HUGEINT", "UHUGEINT") or (kind.startswith("DECIMAL") and not kind.endswith("]")):
        return FLOAT
    if kind.endswith("]") or kind.startswith(("STRUCT", "MAP", "UNION")):
        return kind
    if kind.startswith(("TIMESTAMP", "DATE")):
        return TIME
    return {"BOOLEAN": BOOL, "VARCHAR": WORD, "UUID": WORD, "ENUM": WORD, "JSON": MIXED}.get(kind, kind)


@dataclass
class Seen:
    """What was seen of a column so far: of each kind how often, and where first."""

    kinds: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, kind: str, count: int, where: str) -> None:
        """`count` values more; `where` the first of them is."""
        before = self.kinds.get(kind, (0, where))
        self.kinds[kind] = (before[0] + count, before[1])


def seen(chunks: list[dict[str, Any]]) -> dict[str, Seen]:
    """Each column of all chunks, in the order in which they come."""
    found: dict[str, Seen] = {}
    for chunk in chunks:
        for name, kinds in chunk["columns"].items():
            column = found.setdefault(name, Seen())
            for kind, count, where in kinds:
                column.add(kind, count, where)
    return found


def refuse_missing(config: Prepare, columns: Collection[str]) -> None:
    """Refuse a source without a column that the config names.

    Raises:
        DataError: the first such column, with the closest that there is.
    """
    for name, asker in config.named().items():
        if name not in columns:
            near = did_you_mean(name, columns) or f". The columns are {', '.join(columns)}"
            raise DataError(f"{config.source}: there is no column {name!r} ({asker}){near}")


def settled(config: Prepare, chunks: list[dict[str, Any]]) -> dict[str, str]:
    """The SQL type of each column that the output takes from the source.

    Raises:
        DataError: a column that is not there, that holds several kinds of values, or that is not what it is needed for.
    """
    columns = seen(chunks)
    refuse_missing(config, columns)
    for name in columns:
        if name.startswith("_") and name in ("_t", "_row", "_pos", "_bucket"):
            raise DataError(f"{config.source}: a column is named {name!r}, which is taken here. Rename it")
    if taken := next((name for name in config.made if name in columns), ""):
        raise DataError(f"{config.source}: there is a column {taken!r} already, which an aggregate makes. Rename it")
    types = {name: _settle(config, name, of.kinds) for name, of in columns.items()}
    counted = [(name, "a mean") for one in config.aggregates for name in one.of_columns]
    for name, what in [*counted, *([(config.label, "a label")] if config.label else [])]:
        if types[name] not in ("BIGINT", "UBIGINT", "DOUBLE", "TINYINT"):
            held = " and ".join(SAID.get(kind, kind) for kind in columns[name].kinds)
            raise DataError(f"{config.source}: column {name!r} holds {held}, and {what} is of numbers")
    return types


def _settle(config: Prepare, name: str, kinds: dict[str, tuple[int, str]]) -> str:
    if name == config.time:
        return _time(config, name, kinds)
    found = set(kinds)
    # Of numbers a schema reads those of 64 bits with a sign.
    if name in config.as_words and not found <= ({INT} if name in config.vocabularies else {INT, UNSIGNED}):
        if nested := next((kind for kind in found if kind not in SAID), ""):
            raise DataError(f"{config.source}: column {name!r} is {nested}, and words or numbers are needed")
        return "VARCHAR"
    if name in config.text:
        return "VARCHAR"
    for fits, type_of in (
        ({INT}, "BIGINT"), ({INT, UNSIGNED}, "UBIGINT"), ({INT, UNSIGNED, FLOAT}, "DOUBLE"), ({BOOL}, "TINYINT"),
        ({TIME}, "TIMESTAMP"), ({WORD}, "VARCHAR"),
    ):  # fmt: skip
        if found <= fits:
            return type_of  # of no value at all: the first
    if len(found) == 1 and (only := found.pop()) not in SAID:
        return only
    # The rarest kind is most often the mistake; among numbers of several kinds it is the words.
    numbers = sum(count for kind, (count, _) in kinds.items() if kind in NUMBERS)
    rare = WORD if numbers >= kinds.get(WORD, (numbers + 1,))[0] else min(kinds, key=lambda kind: kinds[kind][0])
    rest = " and ".join(sorted(SAID.get(kind, kind) for kind in kinds if kind != rare)) or "another row another kind"
    raise DataError(
        f"{config.source}: column {name!r} holds {rest}, but {SAID.get(rare, rare)} in {kinds[rare][0]} rows, first at "
        f"{kinds[rare][1]}. Mend those, or name it a column of words with --text {name}"
    )


def _time(config: Prepare, name: str, kinds: dict[str, tuple[int, str]]) -> str:
    found = set(kinds)
    if found and found <= {INT}:
        return "BIGINT"
    if found and found <= {INT, FLOAT}:
        return "DOUBLE"
    if found == {TIME}:
        return "TIMESTAMP"
    if not found:
        raise DataError(f"{config.source}: the time column {name!r} is empty in every row")
    usual = max(kinds, key=lambda kind: kinds[kind][0] * (kind in (INT, FLOAT, TIME)))
    odd = next((kind for kind in kinds if kind != usual), usual)
    if odd == usual:
        raise DataError(f"{kinds[odd][1]}: {name!r} holds {SAID.get(odd, odd)}, and no times. {TIMES}")
    raise DataError(f"{kinds[odd][1]}: {name!r} is no time as in the other rows ({SAID.get(usual, usual)}). {TIMES}")


TIMES = "A time is a number of seconds since 1970, a timestamp or a date, or ISO 8601 text, in one way in all rows"


def cast(name: str, to: str, stored: str) -> str:
    """SQL of a column of type `stored` as `to`."""
    c = quoted(name)
    if to == stored:
        return c
    if to == "VARCHAR" and stored == "JSON":
        return f"({c} ->> '$')"
    if to == "TINYINT":
        return f"CAST(CAST({c} AS BOOLEAN) AS TINYINT)"
    if to == "TIMESTAMP" and stored == "VARCHAR":
        return f"CAST(CAST({c} AS TIMESTAMPTZ) AS TIMESTAMP)"
    return f"CAST({c} AS {to})"


def moment(name: str, kind: str) -> str:
    """SQL of a settled time column in whole microseconds, BIGINT."""
    c = quoted(name)
    if kind == "TIMESTAMP":
        return f"epoch_us({c})"
    return f"CAST({c} AS BIGINT) * 1000000" if kind == "BIGINT" else f"CAST(floor({c} * 1e6) AS BIGINT)"
