"""Every store gives what was put into it, in the order that is asked for; Redis is a real server."""

import asyncio
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from rtrain.errors import ConfigError, DataError
from rtrain.stages.features import AT_ONCE, Features, InMemory, NoFeatures, Of, Redis, SQLite

ITEMS: dict[int | str, dict[str, Any]] = {
    n: {"price": n / 4, "kinds": [n, n + 1], "title": f"no. {n} é", "sold": n % 2 == 0} for n in range(3 * AT_ONCE)
}
USERS: dict[int | str, dict[str, Any]] = {"ann": {"age": 31}, "bo:b": {"age": None}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    if not (program := shutil.which("redis-server")):
        pytest.skip("no redis-server here: apt-get install redis-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    folder = tmp_path_factory.mktemp("redis")
    command = [program, "--port", f"{port}", "--bind", "127.0.0.1", "--save", "", "--dir", f"{folder}"]
    with subprocess.Popen([*command, "--requirepass", "secret"], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield port
        process.terminate()


@pytest.fixture(params=["memory", "sqlite", "redis"])
def filled(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Features:
    if request.param == "memory":
        for name, of, key in (("items", ITEMS, "item"), ("users", USERS, "user")):
            rows = [{key: one} | known for one, known in of.items()]
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
        return InMemory(users=f"{tmp_path}/users.parquet", items=f"{tmp_path}/items.parquet")
    store: Any
    if request.param == "sqlite":
        store = SQLite(path=f"{tmp_path}/features.db")
    else:
        monkeypatch.setenv("REDIS_PASSWORD", "secret")
        store = Redis(url=f"redis://127.0.0.1:{request.getfixturevalue('server')}/0", prefix=tmp_path.name)
    store.fill("item", {7: {"price": -1.0}})
    store.fill("item", ITEMS)
    store.fill("user", USERS)
    return store  # type: ignore[no-any-return]


def get(features: Features, of: Of, names: list[Any]) -> list[Any]:
    async def ask() -> list[Any]:
        store = features.open()
        try:
            return [{k: v for k, v in known.items() if v is not None} for known in await store.get(of, names)]
        finally:
            await store.close()

    return asyncio.run(ask())


def test_what_was_filled_in_is_found(filled: Features) -> None:
    names = [*reversed(ITEMS), 10**9, 3]
    assert get(filled, "item", names) == [*reversed(ITEMS.values()), {}, ITEMS[3]]
    assert get(filled, "user", ["bo:b", "ann", "eve"]) == [{}, {"age": 31}, {}]
    assert get(filled, "user", []) == []


@pytest.mark.parametrize("filled", ["sqlite", "redis"], indirect=True)
@pytest.mark.parametrize("value", ["{oops", "[" * 100_000])
def test_what_is_no_json_costs_nobody_else_what_is_known(filled: Any, value: str, tmp_path: Path) -> None:
    if isinstance(filled, SQLite):
        with closing(sqlite3.connect(filled.path)) as base, base:
            base.execute("update features set known = ? where of = 'user' and name = 'ann'", (value,))
    else:
        redis.Redis.from_url(filled.url, password="secret").set(f"{tmp_path.name}:user:ann", value)

    async def ask() -> list[Any]:
        store = filled.open()
        try:
            return list(await store.get("user", ["bo:b", "ann", "eve"]))
        finally:
            await store.close()

    assert asyncio.run(ask()) in ([{"age": None}, one, {}] for one in (value, value.encode()))


def test_nothing_is_known_without_a_store(tmp_path: Path) -> None:
    assert get(NoFeatures(), "item", [1, 2]) == [{}, {}] and get(InMemory(), "user", ["ann"]) == [{}]


def test_what_was_filled_in_again_is_new(tmp_path: Path) -> None:
    store = SQLite(path=f"{tmp_path}/features.db")
    store.fill("user", {1: {"age": 3, "sort": 2}})
    store.fill("user", {1: {"age": 4}})
    assert get(store, "user", [1]) == [{"age": 4}], "what was known before is gone"
    with pytest.raises(ValueError, match="Out of range float"):
        store.fill("user", {1: {"age": float("nan")}})
    assert get(store, "user", [1]) == [{"age": 4}]


def test_stores_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*x\.db"):
        SQLite(path=f"{tmp_path}/x.db").open()
    with pytest.raises(ConfigError, match="it has a password, which would be written down"):
        Redis(url="redis://:secret@example.org/0")
    pq.write_table(pa.table({"item": [1, 1], "price": [1.0, 2.0]}), tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="of 2 rows 1 have a name 'item' of their own"):
        InMemory(items=f"{tmp_path}/twice.parquet").open()
    with pytest.raises(DataError, match="no column 'itm' of names; did you mean 'item'"):
        InMemory(items=f"{tmp_path}/twice.parquet", item="itm").open()
    with pytest.raises(DataError, match=r"none\.parquet: no such file"):
        InMemory(users=f"{tmp_path}/none.parquet").open()


def test_a_file_that_broke_or_was_replaced_is_read_anew(tmp_path: Path) -> None:
    path, other = tmp_path / "features.db", tmp_path / "other.db"
    for at, price in ((path, 1.0), (other, 2.0)):
        SQLite(path=str(at)).fill("item", {3: {"price": price}})
    store = SQLite(path=str(path)).open()

    def price() -> Any:
        return asyncio.run(store.get("item", [3]))[0]["price"]

    assert price() == 1.0
    kept = tmp_path / "kept.db"
    path.rename(kept)
    assert price() == 1.0, "while there is none the one that is open answers"
    other.rename(path)
    assert price() == 2.0
    path.write_bytes(b"")
    for beside in ("-wal", "-shm"):
        Path(f"{path}{beside}").unlink(missing_ok=True)
    for _ in range(2):
        with pytest.raises(sqlite3.Error):
            price()
    path.unlink()
    for beside in ("-wal", "-shm"):
        Path(f"{path}{beside}").unlink(missing_ok=True)
    kept.rename(path)
    assert price() == 1.0
    asyncio.run(store.close())
