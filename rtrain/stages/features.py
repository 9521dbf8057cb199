"""What is known of users and items while somebody waits for an answer: one protocol, and where it may lie.

A store holds of each user and item a mapping of column -> value, as the ranking model's requests have them. Values are
JSON (SQLite, Redis) or Parquet (in memory): nothing is pickled.
"""

import asyncio
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable
from urllib.parse import urlsplit

import pyarrow as pa

from rtrain.data.parquet import ParquetRows
from rtrain.errors import ConfigError, DataError, UserError, did_you_mean, one_line
from rtrain.storage import Folder
from rtrain.storage.paths import located

Of = Literal["user", "item"]
Name = int | str
"""Of a user or an item, as the data call them."""
Known = Mapping[str, Any]
"""Column -> value of one of them; empty: nothing is known."""

AT_ONCE = 500
"""Names in one question to SQLite, which takes 999 in old versions."""


class StoreError(ConfigError):
    """A store that is there, and does not answer this process: a password that is wrong does not come back right."""


class Store(Protocol):
    """An open store, in one process."""

    async def get(self, of: Of, names: Sequence[Name]) -> list[Known]:
        """What is known of each, in their order."""

    async def close(self) -> None:
        """Of no further use."""


@runtime_checkable  # a field of a config, whose values are looked at
class Features(Protocol):
    """Where a store lies: a frozen config, which goes to each replica. A class of your own may be one."""

    def open(self) -> Store:
        """Connect to it.

        Raises:
            ConfigError: it cannot be used at all; one that is only away for now opens, and answers when it is back.
        """


class _Nothing:
    async def get(self, of: Of, names: Sequence[Name]) -> list[Known]:
        return [{}] * len(names)

    async def close(self) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class NoFeatures:
    """Nothing is known but names: a ranking model of ids, or one whose features come with the request."""

    def open(self) -> Store:
        """See `Features`."""
        return _Nothing()


@dataclass(frozen=True, kw_only=True)
class InMemory:
    """Read from Parquet when a replica starts: one row a user, one row an item."""

    users: str = ""
    """File or folder, or its URI; empty: nothing is known of users."""
    items: str = ""
    """The same of items."""
    user: str = "user"
    """Column of `users` that has the names."""
    item: str = "item"
    """Column of `items` that has the names."""

    def __post_init__(self) -> None:
        for name in ("users", "items"):  # replicas work in another folder
            if getattr(self, name):
                object.__setattr__(self, name, located(getattr(self, name)))

    def open(self) -> Store:
        """See `Features`.

        Raises:
            DataError: files that cannot be read, no such column, or a name in two rows.
        """
        return _Tables(
            {of: _Table(uri, key) for of, uri, key in self._parts if uri},
        )

    @property
    def _parts(self) -> tuple[tuple[Of, str, str], ...]:
        return ("user", self.users, self.user), ("item", self.items, self.item)


class _Table:
    def __init__(self, uri: str, key: str):
        rows = ParquetRows(uri, field="features")
        table = rows.read(0, rows.rows)
        if key not in table.column_names:
            near = did_you_mean(key, table.column_names) or f". The columns are {', '.join(table.column_names)}"
            raise DataError(f"{uri}: there is no column {key!r} of names{near}")
        self._at = {name: row for row, name in enumerate(table[key].to_pylist())}
        if len(self._at) < table.num_rows:
            raise DataError(
                f"{uri}: of {table.num_rows} rows {len(self._at)} have a name {key!r} of their own. Drop others"
            )
        self._table = table.drop_columns([key])

    def get(self, names: Sequence[Name]) -> list[Known]:
        rows = [self._at.get(name) for name in names]
        there = iter(self._table.take(pa.array([row for row in rows if row is not None], pa.int64())).to_pylist())
        return [{} if row is None else {k: v for k, v in next(there).items() if v is not None} for row in rows]


class _Tables(_Nothing):
    def __init__(self, tables: Mapping[str, _Table]):
        self._tables = tables

    async def get(self, of: Of, names: Sequence[Name]) -> list[Known]:
        return self._tables[of].get(names) if of in self._tables else [{}] * len(names)


@dataclass(frozen=True, kw_only=True)
class SQLite:
    """One file on this machine, written while it is read: `fill` replaces what is known of some."""

    path: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", located(self.path))  # replicas work in another folder

    def open(self) -> Store:
        """See `Features`."""
        if not Path(self.path).is_file():
            raise ConfigError(f"features: there is no file {self.path!r}. SQLite(path=...).fill(...) makes it")
        return _Database(self.path)

    def fill(self, of: Of, known: Mapping[Name, Known]) -> None:
        """Write what is known of some users or items; what was known of these before is gone."""
        rows = [(of, str(name), json.dumps(values, allow_nan=False)) for name, values in known.items()]
        with closing(sqlite3.connect(self.path, timeout=30)) as base, base:
            base.execute("pragma journal_mode = wal")  # who reads waits for nobody who writes
            base.execute(
                "create table if not exists features (of text, name text, known text, primary key (of, name)) "
                "without rowid"
            )
            base.executemany("insert or replace into features values (?, ?, ?)", rows)


class _Database:
    def __init__(self, path: str):
        self._path, self._lock = path, threading.Lock()
        self._base, self._file = self._opened(), self._there()

    def _opened(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=1, check_same_thread=False)

    def _there(self) -> tuple[int, int] | None:
        """Which file the path names now; none: no file."""
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    async def get(self, of: Of, names: Sequence[Name]) -> list[Known]:
        return await asyncio.to_thread(self._get, of, names)

    def _get(self, of: Of, names: Sequence[Name]) -> list[Known]:
        found: dict[str, Known] = {}
        texts = [str(name) for name in names]
        with self._lock:
            if (there := self._there()) and there != self._file:  # another one took its place, or this one broke
                self._base.close()
                self._base, self._file = self._opened(), there
            try:
                for start in range(0, len(texts), AT_ONCE):
                    some = texts[start : start + AT_ONCE]
                    asked = f"select name, known from features where of = ? and name in ({','.join('?' * len(some))})"
                    found |= {name: _decoded(known) for name, known in self._base.execute(asked, (of, *some))}
            except sqlite3.Error:
                self._file = None
                raise
        return [found.get(name, {}) for name in texts]

    async def close(self) -> None:
        self._base.close()


@dataclass(frozen=True, kw_only=True)
class Redis:
    """A Redis server, or what speaks its protocol: one JSON value for each user and item, `PREFIX:user:196`."""

    url: str = "redis://127.0.0.1:6379/0"
    """Without a password: `password_env` names the variable that has it on each node."""
    prefix: str = "rtrain"
    password_env: str = "REDIS_PASSWORD"

    def __post_init__(self) -> None:
        if urlsplit(self.url).password:
            raise ConfigError("Redis.url: it has a password, which would be written down. Set it as Redis.password_env")

    def open(self) -> Store:
        """See `Features`."""
        return _Server(_client(self, "asyncio"), self.prefix, self.password_env)

    def fill(self, of: Of, known: Mapping[Name, Known]) -> None:
        """Write what is known of some users or items; what was known of these before is gone."""
        rows = {f"{self.prefix}:{of}:{name}": json.dumps(values, allow_nan=False) for name, values in known.items()}
        with closing(_client(self, "client")) as client:
            for some in _pieces(list(rows), 10_000):
                client.mset({key: rows[key] for key in some})


class _Server:
    def __init__(self, client: Any, prefix: str, password_env: str):
        self._client, self._prefix, self._password_env = client, prefix, password_env

    async def get(self, of: Of, names: Sequence[Name]) -> list[Known]:
        if not names:
            return []
        from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError

        try:
            found = await self._client.mget([f"{self._prefix}:{of}:{name}" for name in names])
        except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
            raise StoreError(
                f"features: Redis refuses this process. Set its password as {self._password_env} where each node's Ray "
                f"is started ({one_line(error)})"
            ) from None
        return [_decoded(value) if value else {} for value in found]

    async def close(self) -> None:
        await self._client.aclose()


def _decoded(value: str | bytes) -> Any:
    """What is written of one; itself, where it is no JSON: who asked for others beside it has theirs."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _client(of: Redis, kind: Literal["asyncio", "client"]) -> Any:
    try:
        import redis
        import redis.asyncio
    except ImportError:
        raise ConfigError("features: Redis needs its client: pip install 'rtrain[redis]'") from None
    # A retry of the client's own would use up the time that the answer has.
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    module, retry = (redis.asyncio, None) if kind == "asyncio" else (redis, Retry(NoBackoff(), 0))
    return module.Redis.from_url(of.url, password=os.environ.get(of.password_env), retry=retry)


def _pieces(names: list[str], most: int) -> Iterable[list[str]]:
    return (names[start : start + most] for start in range(0, len(names), most))


def features_at(where: str) -> Features:
    """The store that a command line names: a Redis URL, a file of `SQLite`, a folder of two Parquet files, or nothing.

    Raises:
        UserError: there is none.
    """
    if not where:
        return NoFeatures()
    if urlsplit(where).scheme in ("redis", "rediss"):
        return Redis(url=where)
    if Path(where).is_file():
        return SQLite(path=where)
    folder = Folder(where)
    found = {name: f"{where}/{name}.parquet" for name in ("users", "items") if folder.exists(f"{name}.parquet")}
    if not found:
        raise UserError(
            f"features: {where!r} is no file of SQLite, no redis:// URL, no folder with users.parquet or items.parquet"
        )
    return InMemory(**found)
