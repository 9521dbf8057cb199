"""The first stages: files -> chunks of rows as they are stored -> chunks of typed rows in the order of time."""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rtrain.data.duck import quoted
from rtrain.data.files import Files
from rtrain.data.prepare.config import Prepare
from rtrain.data.prepare.place import MOST_ROWS, database, fetch, file_of, table, write
from rtrain.data.prepare.types import cast, kind_of_text, kind_of_type, moment, refuse_missing
from rtrain.data.vocabularies import DIGEST, digest_of
from rtrain.errors import DataError
from rtrain.moment import FIRST_SECOND, LAST_SECOND

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection as Connection

CHUNK_ROWS = 1 << 20
"""Rows of a file that are worked on at once."""
BATCH_ROWS = 1 << 16
SAMPLED = 1024
"""Of each chunk every so-manieth moment decides where the output's files part."""


def refuse_unnamed(config: Prepare, files: Files) -> None:
    """Refuse a misspelt column before the files are read: their headers are, until all that is named was there.

    Raises:
        DataError: as `refuse_missing`, or a file that cannot be read.
    """
    found = dict[str, str]()
    with database(config, files.filesystem) as connection:
        for number in range(len(files.paths)):
            found |= _stored(connection, _alone(files, number))
            if set(config.named()) <= set(found):
                return
    refuse_missing(config, found)


def _alone(files: Files, number: int) -> Files:
    return Files(files.uri, files.kind, (files.paths[number],), files.filesystem, (None,), files.partitioned)


def _stored(connection: "Connection", one: Files) -> dict[str, str]:
    """Of each column of a file DuckDB's type."""
    described = connection.execute(
        f"DESCRIBE SELECT * FROM {one.source(whole=True)}", {"files": list(one.paths)}
    ).fetchall()
    return {row[0]: "VARCHAR" if row[1].startswith("ENUM") else row[1] for row in described}


def read(config: Prepare, files: Files, number: int) -> dict[str, Any]:
    """File `number` of the source -> `read/<file>-<chunk>.parquet`, and what was seen in each chunk."""
    one = _alone(files, number)
    given = {"files": list(one.paths)}
    chunks: list[dict[str, Any]] = []
    with database(config, files.filesystem) as connection:
        source, stored = one.source(whole=True), _stored(connection, one)
        listed = ", ".join(
            f"CAST({quoted(n)} AS {'DOUBLE' if kind_of_type(k) == 'float' else k}) AS {quoted(n)}"
            for n, k in stored.items()
        )
        reader = connection.cursor().execute(f"SELECT {listed} FROM {source}", given).to_arrow_reader(BATCH_ROWS)
        rows = 0
        for chunk in _chunks(reader):
            name = f"{number:05d}-{len(chunks):05d}.parquet"
            where = PurePosixPath(files.paths[number]).name
            columns = _kinds(connection, chunk, stored, files.kind in ("csv", "tsv"), where, rows)
            write(config, f"read/{name}", chunk)
            chunks.append({"name": name, "first": rows, "rows": chunk.num_rows, "columns": columns, "stored": stored})
            rows += chunk.num_rows
    return {"file": number, "where": files.paths[number], "chunks": chunks}


def _chunks(batches: Any) -> Iterator[pa.Table]:
    """The same rows, CHUNK_ROWS at once."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += batch.num_rows
        if count >= CHUNK_ROWS:
            whole = pa.Table.from_batches(held)
            yield whole.slice(0, CHUNK_ROWS)
            held = whole.slice(CHUNK_ROWS).to_batches()
            count -= CHUNK_ROWS
    if count:
        yield pa.Table.from_batches(held)


def _kinds(
    connection: "Connection", chunk: pa.Table, stored: dict[str, str], is_text: bool, where: str, first: int
) -> dict[str, list[tuple[str, int, str]]]:
    """Of each column the kinds of its values, how often each, and where first."""
    connection.register("chunk", chunk)
    found = {}
    for name, kind in stored.items():
        sql = kind_of_text(name) if is_text else f"CASE WHEN {quoted(name)} IS NOT NULL THEN $kind END"
        given = {} if is_text else {"kind": kind_of_type(kind)}
        rows = connection.execute(
            f"SELECT kind, count(*), min(row), arg_min(value, row) FROM (SELECT {sql} AS kind, "
            f"row_number() OVER () - 1 AS row, "
            f"left(CAST({quoted(name)} AS VARCHAR), 40) AS value FROM chunk) WHERE kind IS NOT NULL "
            "GROUP BY kind ORDER BY min(row)",
            given,
        ).fetchall()
        found[name] = [(kind, count, f"{where} row {first + row} ({value!r})") for kind, count, row, value in rows]
    connection.unregister("chunk")
    return found


def type_rows(config: Prepare, types: dict[str, str], file: int, where: str, chunk: dict[str, Any]) -> dict[str, Any]:
    """A chunk -> `typed/<chunk>` in the order of time, with `_t` and `_row`; and its values' counts, `counts/...`.

    Raises:
        DataError: a row without a time, a time of no year that there is, a number to average that is none.
    """
    stored, name = chunk["stored"], chunk["name"]
    listed = ", ".join(
        f"{cast(column, to, stored[column]) if column in stored else f'CAST(NULL AS {to})'} AS {quoted(column)}"
        for column, to in types.items()
    )
    with database(config) as connection:
        connection.execute(
            f"CREATE TEMP TABLE typed AS SELECT *, {moment(config.time, types[config.time])} AS _t FROM "
            f"(SELECT {listed}, row_number() OVER () - 1 + {file * MOST_ROWS + chunk['first']} AS _row "
            f"FROM {table(config, f'read/{name}')})"
        )
        _check(connection, config, types, where)
        for column in config.vocabularies:
            counted = fetch(
                connection,
                f"SELECT {quoted(column)} AS value, count(*) AS count FROM typed WHERE {quoted(column)} IS NOT NULL "
                "GROUP BY ALL ORDER BY value",
            )
            write(config, f"counts/{file_of(column)}/{name}", counted)
        rows = fetch(connection, f"SELECT * FROM typed ORDER BY _t, {quoted(config.time)}, _row")
        write(config, f"typed/{name}", rows)
    t = rows["_t"].to_numpy()
    return {"name": name, "rows": len(t), "first": int(t[0]), "last": int(t[-1]), "sample": t[::SAMPLED].tolist()}


def _check(connection: "Connection", config: Prepare, types: dict[str, str], where: str) -> None:
    time = quoted(config.time)
    within = f"{FIRST_SECOND * 1_000_000} AND {LAST_SECOND * 1_000_000}"
    number = f"{time} NOT BETWEEN {FIRST_SECOND} AND {LAST_SECOND}" if types[config.time] != "TIMESTAMP" else "false"
    asks = [
        (f"{time} IS NULL", config.time, "is missing. Fill it, or drop the row"),
        (
            f"{number} OR _t NOT BETWEEN {within}",
            config.time,
            "counts no seconds since 1970: it is of no year from 1 to 9999",
        ),
    ]
    for one in config.aggregates:
        of = [name for name in one.of_columns if types[name] == "DOUBLE"]
        asks += [(f"NOT isfinite({quoted(name)})", name, "is no finite number, and a mean is of such") for name in of]
    for wrong, column, why in asks:
        row = connection.execute(
            f"SELECT _row % {MOST_ROWS}, CAST({quoted(column)} AS VARCHAR) FROM typed WHERE {wrong} "
            "ORDER BY _row LIMIT 1"
        ).fetchone()
        if row:
            value = "" if row[1] is None else f" {row[1]}"
            raise DataError(f"{where} row {row[0]}: {column!r}{value} {why}")


def vocabulary(config: Prepare, column: str, chunks: list[str]) -> dict[str, Any]:
    """`vocabularies/<column>.parquet`: `value` and `count`, the most frequent first; the first is row 1."""
    name = f"{file_of(column)}.parquet"
    with database(config) as connection:
        rows = fetch(
            connection,
            f"SELECT value, CAST(sum(count) AS BIGINT) AS count FROM "
            f"{table(config, *(f'counts/{file_of(column)}/{chunk}' for chunk in chunks))} "
            f"GROUP BY value HAVING sum(count) >= {config.min_count} ORDER BY sum(count) DESC, value",
        )
    digest = digest_of(rows["value"])
    sha256 = write(config, f"whole/vocabularies/{name}", rows, {DIGEST.decode(): digest})
    kind = "words" if pa.types.is_string(rows["value"].type) else "numbers"
    return {
        "column": column, "file": f"vocabularies/{name}", "rows": rows.num_rows, "kind": kind, "digest": digest,
        "sha256": sha256,
    }  # fmt: skip
