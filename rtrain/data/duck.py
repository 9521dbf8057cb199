"""DuckDB as rtrain opens it: nothing fetched, bounded in memory, ended by Ctrl-C."""

import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from rtrain.errors import ConfigError, DataError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection as Connection


def quoted(name: str) -> str:
    """A column's name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


@contextmanager
def opened(
    uri: str, filesystem: Any, memory_gb: float, *, asker: str, extra: str, in_order: bool = False
) -> Iterator["Connection"]:
    """A database in memory, of `memory_gb` and a temporary folder beyond; its errors become ones that name `uri`.

    `filesystem`: fsspec's, of files that are not local; `asker` and `extra`: who needs DuckDB, and rtrain's extra that
    brings it; `in_order`: rows keep their order, by one thread, so that the same rows give the same bytes.

    Raises:
        ConfigError: DuckDB is not installed.
        DataError: what was asked of it cannot be done.
    """
    try:
        import duckdb
    except ImportError:
        raise ConfigError(f"{asker} needs DuckDB: pip install 'rtrain[{extra}]'") from None
    with tempfile.TemporaryDirectory(prefix="rtrain-duckdb-") as spill:
        settings: dict[str, Any] = {
            # Nothing is fetched: what is not built in is an error.
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "memory_limit": f"{memory_gb * 1e9:.0f}B",
            "temp_directory": spill,
            "preserve_insertion_order": in_order,
        }
        if in_order:
            settings["threads"] = 1
        with duckdb.connect(":memory:", config=settings) as connection, _ctrl_c(connection.interrupt):
            connection.execute("SET TimeZone = 'UTC'")
            if filesystem is not None:
                connection.register_filesystem(filesystem)
            try:
                yield connection
            except duckdb.OutOfMemoryException as error:
                raise DataError(f"{uri}: {short(error)}. Raise --memory-gb ({memory_gb:g})") from None
            except duckdb.ParserException:  # of our own SQL
                raise
            except (duckdb.Error, OSError) as error:
                raise DataError(f"{uri}: it cannot be read ({short(error)})") from None


@contextmanager
def _ctrl_c(interrupt: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C ends what is inside, whatever DuckDB makes of it: another exception, or, as was seen once, none."""
    before, told = signal.getsignal(signal.SIGINT), []
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield  # only the main thread is interrupted, and nobody whom a shell started with `&`
        return

    def tell(number: int, frame: FrameType | None) -> None:
        told.append(number)
        interrupt()
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGINT, tell)
    try:
        yield
        if told:
            raise KeyboardInterrupt
    except Exception:
        if told:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def short(error: Exception) -> str:
    """DuckDB's message without the query and its advice on options that are not the user's to give."""
    text = str(error).split("\n\n")[0].split("\nPossible ")[0].split("\nTry setting")[0].split("\nThe search space")[0]
    return " ".join(text.split()).rstrip(".")
