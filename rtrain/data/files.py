"""Files of rows, of one format, and the SQL by which DuckDB reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fsspec

from rtrain.data.duck import literal
from rtrain.errors import DataError

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


@dataclass(frozen=True)
class Files:
    """A table's files, all of one format."""

    uri: str
    kind: str
    paths: tuple[str, ...]
    """As DuckDB takes them: of local files the path, of others the URI."""
    filesystem: Any
    """fsspec's, of files that are not local."""
    sizes: tuple[int | None, ...]
    """Bytes of each; none where the storage does not say."""
    partitioned: bool
    """Whether folders named `column=value` lie in the folder."""

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


def find_files(uri: str, *, table: str = "table", row: str = "row") -> Files:
    """The file, or those of the folder and the folders inside it; `table` and `row`: what messages call them.

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
        raise DataError(f"{uri}: no {table}. Give {', '.join(FORMATS)} (text also .gz), or a folder of one of these")
    if len(kinds) > 1:
        raise DataError(f"{uri}: the folder has files of several formats ({', '.join(kinds)}). Keep those of one")
    logs = [name for name, kind in formats.items() if kind and sizes[name] != 0]
    if not logs:
        raise DataError(f"{uri}: there is no {row} in it")
    is_local = "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))
    paths = tuple(_unglobbed(name if is_local else fs.unstrip_protocol(name)) for name in logs)
    partitioned = any("=" in part for name in logs for part in within[name][:-1])
    return Files(uri, kinds[0], paths, None if is_local else fs, tuple(sizes[name] for name in logs), partitioned)


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
