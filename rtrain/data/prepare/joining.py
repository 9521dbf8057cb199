"""The later stages: slices of time -> keys in buckets -> aggregates of each bucket -> the output's files."""

from typing import Any

from rtrain.data.duck import quoted
from rtrain.data.prepare import statistics
from rtrain.data.prepare.aggregates import select
from rtrain.data.prepare.config import Prepare
from rtrain.data.prepare.place import MOST_ROWS, database, fetch, file_of, table, write
from rtrain.data.prepare.reading import SAMPLED

SLICE_ROWS = 1 << 20
"""Rows of a file of the output, about: a moment's rows stay together."""
BUCKET_ROWS = 1 << 20
"""Rows whose keys are worked on at once, about: a key's rows stay together."""


def cuts(chunks: list[dict[str, Any]]) -> list[list[int]]:
    """First and last moment of each slice, from the moments that were sampled of each chunk."""
    sampled = sorted(t for chunk in chunks for t in chunk["sample"])
    first, last = min(c["first"] for c in chunks), max(c["last"] for c in chunks)
    starts = sorted({first, *sampled[SLICE_ROWS // SAMPLED :: SLICE_ROWS // SAMPLED]})
    return [[start, stop - 1] for start, stop in zip(starts, [*starts[1:], last + 1], strict=True)]


def slice_rows(
    config: Prepare, chunks: list[dict[str, Any]], buckets: int, number: int, ends: list[int]
) -> dict[str, Any]:
    """Rows of a slice of time from all chunks -> `sorted/<slice>`; and of each key `keys/<key>/<slice>` by bucket."""
    names = [f"typed/{c['name']}" for c in chunks if c["first"] <= ends[1] and c["last"] >= ends[0]]
    file = f"{number:05d}.parquet"
    with database(config) as connection:
        connection.execute(
            f"CREATE TEMP TABLE slice AS SELECT *, row_number() OVER () - 1 + {number * MOST_ROWS} AS _pos FROM "
            f"(SELECT * FROM {table(config, *names)} WHERE _t BETWEEN {ends[0]} AND {ends[1]} "
            f"ORDER BY _t, {quoted(config.time)}, _row)"
        )
        for key in config.keys:
            of = dict.fromkeys(name for one in config.of_key(key) for name in one.of_columns)
            listed = "".join(f", {quoted(name)} AS {quoted(name)}" for name in of)
            keyed = fetch(
                connection,
                f"SELECT hash({quoted(key)}) % {buckets} AS _bucket, _pos, _t, {quoted(key)} AS key{listed} FROM slice "
                f"WHERE {quoted(key)} IS NOT NULL ORDER BY _bucket, _pos",
            )
            write(config, f"keys/{file_of(key)}/{file}", keyed)
        rows = fetch(connection, "SELECT * EXCLUDE (_row, _t) FROM slice ORDER BY _pos")
        write(config, f"sorted/{file}", rows)
    return {"name": file, "rows": rows.num_rows}


def aggregate(config: Prepare, key: str, bucket: int, slices: list[str]) -> dict[str, Any]:
    """A bucket's keys -> `aggregates/<key>/<bucket>`: `_pos` and each column that is made."""
    source = table(config, *(f"keys/{file_of(key)}/{name}" for name in slices))
    rows = f"SELECT * EXCLUDE (_bucket) FROM {source} WHERE _bucket = {bucket}"
    with database(config) as connection:
        made = fetch(connection, f"{select(config.of_key(key), rows)} ORDER BY rows._pos")
    write(config, f"aggregates/{file_of(key)}/{bucket:05d}.parquet", made)
    return {"rows": made.num_rows}


def finish(
    config: Prepare, columns: list[str], buckets: int, number: int, rows: int, every: int, before: int
) -> dict[str, Any]:
    """A slice with its aggregates and with rows of vocabularies for values -> `whole/data/<slice>`, and its statistics.

    `every`: one row in so many gives its values for the quantiles; `before`: rows of the slices before.
    """
    file = f"{number:05d}.parquet"
    within = f"_pos BETWEEN {number * MOST_ROWS} AND {number * MOST_ROWS + rows - 1}"
    joins, listed = [], []
    for index, name in enumerate(columns):
        if name not in config.vocabularies:
            listed.append(f"slice.{quoted(name)}")
            continue
        words = table(config, f"whole/vocabularies/{file_of(name)}.parquet")
        joins.append(
            f"LEFT JOIN (SELECT value, row_number() OVER () AS row FROM {words}) AS v{index} "
            f"ON slice.{quoted(name)} = v{index}.value"
        )
        listed.append(f"CAST(coalesce(v{index}.row, 0) AS BIGINT) AS {quoted(name)}")
    for index, key in enumerate(config.keys):
        found = table(config, *(f"aggregates/{file_of(key)}/{bucket:05d}.parquet" for bucket in range(buckets)))
        joins.append(f"LEFT JOIN (SELECT * FROM {found} WHERE {within}) AS a{index} ON slice._pos = a{index}._pos")
        nothing = {name: sql for one in config.of_key(key) for name, sql in one.nothing.items()}
        listed += [
            f"CASE WHEN a{index}._pos IS NULL THEN {sql} ELSE a{index}.{quoted(name)} END AS {quoted(name)}"
            for name, sql in nothing.items()
        ]
    with database(config) as connection:
        made = fetch(
            connection,
            f"SELECT {', '.join(listed)} FROM {table(config, f'sorted/{file}')} AS slice {' '.join(joins)} "
            "ORDER BY slice._pos",
        )
        of_columns = statistics.of_slice(connection, made, every, before)
    sha256 = write(config, f"whole/data/{file}", made)
    return {"file": f"data/{file}", "rows": made.num_rows, "sha256": sha256, "columns": of_columns}
