"""What each column holds, from what each slice says of itself, so that the same rows give the same numbers."""

import math
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rtrain.data.duck import quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection as Connection

SMALLEST = 1024
"""Hashes that are kept of a column: up to so many different values are counted exactly, more to some 3 %."""
SAMPLE_ROWS = 100_000
"""Rows that quantiles are taken from, spread evenly; of no more rows they are exact."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def of_slice(connection: "Connection", rows: pa.Table, every: int, before: int) -> dict[str, dict[str, Any]]:
    """Of each column: type, nulls, and of numbers, words and times what `combined` needs."""
    connection.register("made", rows)
    found = {}
    for field in rows.schema:
        one: dict[str, Any] = {"type": str(field.type), "nulls": rows[field.name].null_count}
        c = quoted(field.name)
        if not pa.types.is_nested(field.type):
            low, high = connection.execute(f"SELECT min({c}), max({c}) FROM made").fetchall()[0]
            hashes = connection.execute(
                f"SELECT DISTINCT hash({c}) AS h FROM made WHERE {c} IS NOT NULL ORDER BY h LIMIT {SMALLEST}"
            ).fetchall()
            one |= {"min": _plain(low), "max": _plain(high), "hashes": [h for (h,) in hashes]}
        if pa.types.is_integer(field.type) or pa.types.is_floating(field.type):
            values = rows[field.name].cast(pa.float64(), safe=False).drop_null().to_numpy()
            mean = float(values.mean()) if len(values) else 0.0
            squares = float(((values - mean) ** 2).sum())
            own = rows[field.name].slice(-before % every)
            sample = own.take(pa.array(range(0, len(own), every), pa.int64())).to_pylist()
            one |= {"mean": mean, "squares": squares, "sample": [_plain(v) for v in sample if v is not None]}
        found[field.name] = one
    connection.unregister("made")
    return found


def combined(slices: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """statistics.json: of each column its type, rows, nulls, about how many values, min, max, of numbers more."""
    return {
        name: _combined([s["columns"][name] for s in slices], [s["rows"] for s in slices])
        for name in slices[0]["columns"]
    }


def _combined(parts: list[dict[str, Any]], rows: list[int]) -> dict[str, Any]:
    found: dict[str, Any] = {"type": parts[0]["type"], "rows": sum(rows), "nulls": sum(p["nulls"] for p in parts)}
    if "hashes" in parts[0]:
        smallest = sorted({h for p in parts for h in p["hashes"]})[:SMALLEST]
        full = len(smallest) == SMALLEST
        found["distinct_about"] = round((SMALLEST - 1) * 2**64 / smallest[-1]) if full else len(smallest)
        for name, of in (("min", min), ("max", max)):
            found[name] = of((p[name] for p in parts if p[name] is not None), default=None)
    if "mean" in parts[0]:
        counts = [n - p["nulls"] for n, p in zip(rows, parts, strict=True)]
        total = sum(counts)
        sample = sorted(v for p in parts for v in p["sample"])
        mean = math.fsum(n * p["mean"] for n, p in zip(counts, parts, strict=True)) / total if total else None
        found |= {"mean": mean, "std": None, "quantiles": {}}
        if mean is not None:
            squares = math.fsum(p["squares"] + n * (p["mean"] - mean) ** 2 for n, p in zip(counts, parts, strict=True))
            found["std"] = math.sqrt(squares / total)
        if sample:
            found["quantiles"] = {f"{q:g}": sample[min(len(sample) - 1, int(q * len(sample)))] for q in QUANTILES}
    return found


def _plain(value: Any) -> Any:
    """As JSON has it: a time as ISO 8601, a number that is not finite as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, int | float | str | None) else str(value)
