"""What is made of batches in the thread that makes them: every batch of every way to read, once, in its place."""

import gc
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain.data.cursor import Cursor
from rtrain.data.interactions import Interactions
from rtrain.data.negatives import Negatives
from rtrain.data.prefetch import NAME
from rtrain.data.retrieval import Graph, Histories, Pairs
from rtrain.data.samples import Samples
from rtrain.data.tokens import Tokens, write_shards
from rtrain.errors import DataError
from rtrain.schema import Schema

Open = Callable[[int], Samples[Any]]


@dataclass(eq=False)
class Made:
    """Of one batch."""

    of: Any
    thread: str


@dataclass
class Makes:
    fails_at: int = -1
    made: list[weakref.ref[Made]] = field(default_factory=list)

    def __call__(self, batch: Any) -> Made:
        if len(self.made) == self.fails_at:
            raise DataError("no room for the batch")
        found = Made(batch, threading.current_thread().name)
        self.made.append(weakref.ref(found))
        return found


@pytest.fixture(params=["one window", "windows", "tokens", "pairs", "histories", "graph"])
def opens(request: pytest.FixtureRequest, write: Callable[..., str], schema: Schema, tmp_path: Path) -> Open:
    """By how many batches a thread keeps ready."""
    name = request.param
    if name == "tokens":
        write_shards(iter([np.arange(2000) % 50]), tmp_path / "shards", vocab=50, tokenizer="none")
        return lambda n: Tokens(source=str(tmp_path / "shards"), context=4, prefetch=n).open()
    if name in ("one window", "windows"):
        window_rows = 1_000_000 if name == "one window" else 50
        path = write(1000)
        return lambda n: Interactions(source=path, schema=schema, window_rows=window_rows, prefetch=n).open()
    user, item = (x.ravel() for x in np.divmod(np.arange(300), 10))
    log = pa.table({"user_id": user, "item_id": (user + 3 * item) % 20, "timestamp": np.arange(300)})
    pq.write_table(log, tmp_path / "log.parquet")
    kind: Any = {"pairs": Pairs, "histories": Histories, "graph": Graph}[name]
    of = {"source": f"{tmp_path}/log.parquet", "users": 30, "items": 20, "negatives": Negatives(count=2)}
    return lambda n: kind(**of, prefetch=n).open()


def rows(batch: Any) -> list[int]:
    return [*batch.row.tolist(), *(() if getattr(batch, "items", None) is None else batch.items.tolist())]


def threads() -> int:
    return sum(t.name == NAME for t in threading.enumerate())


def read(data: Samples[Any], **more: Any) -> Iterator[tuple[Any, Cursor]]:
    return iter(data.reader(global_batch=20, seed=1, rank=0, world_size=2, **more))


@pytest.mark.parametrize("depth", [0, 2])
def test_batches_and_cursors_are_those_of_before(opens: Open, depth: int) -> None:
    data, makes = opens(depth), Makes()
    plain = list(itertools.islice(read(data), 40))
    made = list(itertools.islice(read(data, ready=makes), 40))
    assert [(rows(m.of), at) for m, at in made] == [(rows(b), at) for b, at in plain]
    assert {m.thread for m, _ in made} == {NAME if depth else threading.main_thread().name}
    again = read(data, ready=makes, cursor=made[16][1])
    assert [rows(next(again)[0].of) for _ in range(5)] == [rows(m.of) for m, _ in made[17:22]]


@pytest.mark.parametrize("depth", [0, 2])
def test_a_scan_makes_every_batch_once(opens: Open, depth: int) -> None:
    data = opens(depth)
    for rank in (0, 1):
        makes, of = Makes(), {"global_batch": 16, "rank": rank, "world_size": 2}
        made = list(data.scan("test", **of, ready=makes))
        assert [rows(m.of) for m in made] == [rows(b) for b in data.scan("test", **of)]
        assert len(makes.made) == len(made) > 1


@pytest.mark.parametrize("depth", [0, 3])
def test_what_goes_wrong_is_told_where_the_batch_would_have_come(opens: Open, depth: int) -> None:
    batches = read(opens(depth), ready=Makes(fails_at=2))
    assert len([next(batches), next(batches)]) == 2
    with pytest.raises(DataError, match="no room for the batch"):
        next(batches)
    assert threads() == 0


def test_what_was_made_ahead_is_let_go_on_close(opens: Open) -> None:
    makes = Makes()
    reader = opens(2).reader(global_batch=20, seed=1, rank=0, world_size=1, ready=makes)
    taken = next(iter(reader))[0]
    reader.close()
    gc.collect()
    assert threads() == 0 and [made() for made in makes.made if made() is not None] == [taken]
