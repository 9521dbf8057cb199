"""Small made-up interactions, and the real MovieLens wheel."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain.data import sources
from rtrain.schema import Dense, Id, IdList, IdSequence, Schema

GENRES = ("action", "comedy", "drama")


@pytest.fixture
def schema() -> Schema:
    return Schema(
        features=(
            Dense(name="age", entity="user", mean=30.0, std=10.0, missing=30.0),
            Id(name="user", entity="user", rows=50),
            IdList(name="genres", entity="item", vocabulary=GENRES),
            Id(name="gender", entity="user", vocabulary=("F", "M")),
            IdSequence(name="history", rows=100, table="item", max_length=5),
            Dense(name="price"),
            Id(name="item", entity="item", rows=100),
        ),
        group="user",
        time="time",
    )


def make_table(rows: int, seed: int = 0) -> pa.Table:
    """Random rows, sorted by time, with ties, nulls and lists of 0 to 8 values."""
    draw = np.random.default_rng(seed)
    lists = [draw.integers(0, 100, draw.integers(0, 9)).tolist() for _ in range(rows)]
    genres = [draw.choice([*GENRES, "western"], draw.integers(0, 3)).tolist() for _ in range(rows)]
    return pa.table(
        {
            "age": pa.array([None if x < 0.1 else 60 * x for x in draw.random(rows)], pa.float64()),
            "user": pa.array(draw.integers(0, 50, rows)),
            "genres": pa.array(genres, pa.list_(pa.string())),
            "gender": pa.array([["F", "M", "X", None][x] for x in draw.integers(0, 4, rows)], pa.string()),
            "history": pa.array(lists, pa.list_(pa.int64())),
            "price": pa.array(draw.normal(size=rows)),
            "item": pa.array(draw.integers(0, 100, rows)),
            "time": pa.array(np.sort(draw.integers(0, max(rows // 3, 1), rows)) + 1_000_000),
            "label": pa.array(draw.integers(0, 2, rows).astype(float)),
        }
    )


Make = Callable[..., pa.Table]


@pytest.fixture
def make() -> Make:
    """`make_table`: rows, seed."""
    return make_table


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(rows: int = 1000, *, group: int = 100, files: int = 1, **changes: pa.Array) -> str:
        """A folder of Parquet files, or one file; returns its path."""
        table = make_table(rows)
        for name, column in changes.items():
            table = table.set_column(table.column_names.index(name), name, column)
        if files == 1:
            pq.write_table(table, tmp_path / "rows.parquet", row_group_size=group)
            return str(tmp_path / "rows.parquet")
        folder = tmp_path / "rows"
        folder.mkdir()
        for part in range(files):
            start, stop = part * rows // files, (part + 1) * rows // files
            pq.write_table(table.slice(start, stop - start), folder / f"part-{part}.parquet", row_group_size=group)
        return str(folder)

    return write


@pytest.fixture(scope="session")
def cache_with_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the real wheel: the user's own if it is there already, else brought by pip."""
    cache = tmp_path_factory.mktemp("cache")
    if (sources.default_cache() / sources.WHEEL).is_file():
        shutil.copyfile(sources.default_cache() / sources.WHEEL, cache / sources.WHEEL)
    sources.get("ml-100k", cache=cache)
    return cache


@pytest.fixture
def cache(cache_with_wheel: Path, tmp_path: Path) -> Path:
    """A cache folder of this test's own, with nothing but the wheel."""
    own = tmp_path / "cache"
    own.mkdir()
    shutil.copyfile(cache_with_wheel / sources.WHEEL, own / sources.WHEEL)
    return own


@pytest.fixture(scope="session")
def ml100k(cache_with_wheel: Path) -> Path:
    """The converted MovieLens-100K, really made from the wheel; read only."""
    return cache_with_wheel / "ml-100k" / "ml-100k.parquet"
