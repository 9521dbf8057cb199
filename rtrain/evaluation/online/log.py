"""An event log's files and columns, and the SQL that reads them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import fsspec

from rtrain.errors import ConfigError, DataError, did_you_mean

FORMATS = {
    ".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".jsonl": "json", ".ndjson": "json", ".json": "json",
}  # fmt: skip
COMPRESSED = (".gz",)
# All as text: what a first few thousand rows look like must not decide how the others are read.
TEXT = """header=true, quote='"', escape='"', comment='', skip=0, all_varchar=true"""
OPTIONS = {
    "parquet": "read_parquet($files, binary_as_string=true",
    "csv": f"read_csv($files, delim=',', {TEXT}",
    "tsv": f"read_csv($files, delim='\t', {TEXT}",
    "json": "read_json($files, format='newline_delimited'",
}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What the log's columns are called. An empty name: by default, if the log has such a one (see `OPTIONAL`)."""

    session: str = "session_id"
    event: str = "event"
    time: str = "timestamp"
    query: str = ""
    item: str = ""
    results: str = ""
    unit: str = ""
    """Whose events are independent of others': the user, where an experiment was drawn by user. Empty: the session."""
    by: tuple[str, ...] = ()
    """Columns whose values make groups."""

    def __post_init__(self) -> None:
        for name in ("session", "event", "time"):
            if not getattr(self, name):
                raise ConfigError(f"--{name}: give the name of a column")
        if "" in self.by or len(set(self.by)) < len(self.by):
            raise ConfigError(f"--by: give each column once, got {', '.join(map(repr, self.by))}")


OPTIONAL = {"query": "query_id", "item": "item_id", "results": "results"}


@dataclass(frozen=True, kw_only=True)
class Events:
    """What the log calls each kind of event."""

    impression: tuple[str, ...] = ("impression", "view")
    click: tuple[str, ...] = ("click",)
    add_to_cart: tuple[str, ...] = ("add_to_cart",)
    purchase: tuple[str, ...] = ("purchase",)
    search: tuple[str, ...] = ("search",)
    other: tuple[str, ...] = field(default=())
    """Events of none of these kinds; they count as engagement, and as something after an impression."""

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for kind, names in asdict(self).items():
            for name in names:
                if name in seen:
                    raise ConfigError(f"events: {name!r} is given twice, by {option(seen[name])} and {option(kind)}")
                seen[name] = kind

    @property
    def kinds(self) -> dict[str, str]:
        """The kind of each event's name."""
        return {name: kind for kind, names in asdict(self).items() for name in names}


KINDS = tuple(f.name for f in fields(Events))


def option(kind: str) -> str:
    """The command line's option of a kind of event, or of a column."""
    return "--" + kind.replace("_", "-")


def quoted(name: str) -> str:
    """A column's name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


@dataclass(frozen=True)
class Files:
    """A log's files, all of one format."""

    uri: str
    kind: str
    paths: tuple[str, ...]
    """As DuckDB takes them: of local files the path, of others the URI."""
    filesystem: Any
    """fsspec's, of files that are not local."""
    partitioned: bool
    """Whether folders named `column=value` lie in the log's folder."""

    def source(self, wanted: Sequence[str] = (), *, whole: bool = False) -> str:
        """SQL of the table of all rows; takes `$files`.

        `wanted`: keys to read of JSON lines, each as text; none: those of the first lines, or of all (`whole`).
        """
        options = [OPTIONS[self.kind]]
        if self.kind == "json" and wanted:
            keys = (f"{literal(name)}: 'VARCHAR'" for name in dict.fromkeys(wanted))
            options.append(f"columns={{{', '.join(keys)}}}")
        elif len(self.paths) > 1:
            options.append("union_by_name=true")
        if self.kind == "json" and whole:
            options.append("sample_size=-1, maximum_sample_files=1000000000")
        options.append(f"hive_partitioning={str(self.partitioned).lower()}")
        if self.partitioned:
            options.append("hive_types_autocast=false")
        return ", ".join(options) + ")"


def find_files(uri: str) -> Files:
    """The log's file, or those of its folder and the folders inside it.

    Raises:
        DataError: nothing there, no file of a format that is read, or of several.
    """
    try:
        fs, path = fsspec.core.url_to_fs(uri)
        fs.invalidate_cache()
        sizes = {path: fs.size(path)} if fs.isfile(path) else _sizes(fs, path)
    except FileNotFoundError:
        sizes = {}
    except (ValueError, ImportError, OSError) as error:
        raise DataError(f"{uri}: it cannot be read ({' '.join(str(error).split())})") from None
    if not sizes and not fs.isdir(path):
        raise DataError(f"{uri}: no such file or folder")
    within = {name: name[len(path) :].split("/") for name in sizes}
    formats = {
        name: _format(name) for name, parts in within.items() if not any(p.startswith((".", "_")) for p in parts)
    }
    kinds = sorted(set(formats.values()) - {""})
    if not kinds:
        raise DataError(f"{uri}: no event log. Give {', '.join(FORMATS)} (text also .gz), or a folder of one of these")
    if len(kinds) > 1:
        raise DataError(f"{uri}: the folder has files of several formats ({', '.join(kinds)}). Keep those of one")
    logs = [name for name, kind in formats.items() if kind and sizes[name] != 0]
    if not logs:
        raise DataError(f"{uri}: there is no event in it")
    is_local = "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))
    paths = tuple(_unglobbed(name if is_local else fs.unstrip_protocol(name)) for name in logs)
    partitioned = any("=" in part for name in logs for part in within[name][:-1])
    return Files(uri, kinds[0], paths, None if is_local else fs, partitioned)


def check_columns(uri: str, columns: Columns, known: list[str]) -> None:
    """See that each column that was named is there.

    Raises:
        DataError: it is not.
    """
    for role, name in asdict(columns).items():
        for given in name if role == "by" else filter(None, [name]):
            if given not in known:
                near = did_you_mean(given, known) or f". The columns are {', '.join(known)}"
                raise DataError(f"{uri}: column {given!r} ({option(role)}) is missing{near}")


def _sizes(fs: Any, path: str) -> dict[str, int | None]:
    """Bytes of a folder's files, those inside its folders too, by name; none where the storage does not say."""
    return {name: entry.get("size") for name, entry in sorted(fs.find(path, detail=True).items())}


def _format(name: str) -> str:
    name = name.lower()
    for suffix, kind in FORMATS.items():
        if name.endswith(suffix) or (kind != "parquet" and name.endswith(tuple(suffix + c for c in COMPRESSED))):
            return kind
    return ""


def _unglobbed(path: str) -> str:
    """A path in which DuckDB sees no pattern."""
    return "".join(f"[{letter}]" if letter in "[*?" else letter for letter in path)
