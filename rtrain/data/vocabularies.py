"""Vocabularies read from their files, and values looked up in them.

Shape legend: N values of a column, V values of a vocabulary.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rtrain.data.hashed import hashes
from rtrain.errors import DataError, one_line
from rtrain.vocabulary import Vocabulary

DIGEST = b"rtrain.vocabulary"
"""Of a file's metadata: `digest_of` its values."""
DIGEST_ROWS = 1 << 20
ESCAPED = r'[\x00-\x1f"\\]'
"""What JSON writes otherwise."""
_KNOWN: dict[str, "Known"] = {}
"""What this process has read, by sha256: a file is read once, whatever reads it."""


class Known:
    """The values of a vocabulary, in memory: about 16 bytes each beside the values themselves."""

    def __init__(self, values: pa.Array):
        """`values`: [V], each once."""
        self.values = values
        self._words = pa.types.is_string(values.type)
        keys = hashes(pa.table({"value": values})) if self._words else values.to_numpy()
        self._order = np.argsort(keys)
        self._keys = keys[self._order]
        # Two words of one hash: a chance of 3e-6 among 10 million. Then Arrow's own table is made at each look.
        self._clash = self._words and bool((self._keys[1:] == self._keys[:-1]).any())

    def ids(self, column: pa.ChunkedArray) -> NDArray[np.integer]:
        """[N]: of each value its place + 1, and 0 of one that is null or not there; int32 if no id is larger."""
        coded = column.combine_chunks().dictionary_encode()  # of what is there several times, one look
        wide = np.int32 if len(self.values) < 2**31 else np.int64
        found: NDArray[np.integer] = np.append(self._places(coded.dictionary) + 1, 0).astype(wide)
        ids: NDArray[np.integer] = found[coded.indices.fill_null(len(coded.dictionary)).to_numpy()]
        return ids

    def _places(self, values: pa.Array) -> NDArray[np.int64]:
        """Of values without a null, each one's place, or -1."""
        if self._clash:
            clashing: NDArray[np.int64] = pc.index_in(values, value_set=self.values).fill_null(-1).to_numpy()
            return clashing
        keys = hashes(pa.table({"value": values})) if self._words else values.to_numpy()
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        places, there = self._order[at], self._keys[at] == keys
        if self._words:  # another word may have a known one's hash
            there &= pc.equal(values, self.values.take(pa.array(places))).to_numpy(zero_copy_only=False)
        return np.where(there, places, -1)


def vocabulary_of(file: str) -> Vocabulary:
    """The config of a vocabulary's file: a Parquet file on any storage, whose column `value` has each value once.

    Raises:
        DataError: no such file, no such column, values that are neither strings nor whole numbers, null or twice there.
    """
    values, digest = _read(file)
    kind: Any = "words" if pa.types.is_string(values.type) else "numbers"
    return Vocabulary(file=file, size=len(values), sha256=digest, kind=kind)


def known_of(vocabulary: Vocabulary) -> Known:
    """The values of a vocabulary; read once in a process.

    Raises:
        DataError: as `vocabulary_of`, or a file of another version.
    """
    if vocabulary.sha256 not in _KNOWN:
        adopt(vocabulary, vocabulary.file)
    return _KNOWN[vocabulary.sha256]


def adopt(vocabulary: Vocabulary, file: str | Path) -> None:
    """Read a vocabulary from a copy of its file.

    Raises:
        DataError: as `known_of`.
    """
    values, digest = _read(str(file))
    if digest != vocabulary.sha256:
        raise DataError(
            f"{file}: a vocabulary of another version: its sha256 is {digest[:12]}, the config's "
            f"{vocabulary.sha256[:12]}. Bring back the file that the config was made of, or train anew with "
            "rtrain.vocabulary_of of this one"
        )
    kind = "words" if pa.types.is_string(values.type) else "numbers"
    if (len(values), kind) != (vocabulary.size, vocabulary.kind):
        raise DataError(
            f"{file}: it holds {len(values)} {kind}, but the config says {vocabulary.size} {vocabulary.kind}. Give "
            "what rtrain.vocabulary_of says"
        )
    _KNOWN[digest] = Known(values)


def _read(file: str) -> tuple[pa.Array, str]:
    """Its values, string or int64, and their digest."""
    try:
        with fsspec.open(file, "rb") as opened, pq.ParquetFile(opened, page_checksum_verification=True) as parquet:
            schema = parquet.schema_arrow
            if "value" not in schema.names:
                raise DataError(f"{file}: a vocabulary has a column 'value'; its columns are {', '.join(schema.names)}")
            column = parquet.read(["value"])["value"]
            said = (schema.metadata or {}).get(DIGEST, b"").decode()
    except FileNotFoundError:
        raise DataError(f"{file}: there is no such vocabulary. Check its path") from None
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        raise DataError(f"{file}: the vocabulary cannot be read ({one_line(error)})") from None
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    text, whole = pa.types.is_string(kind) or pa.types.is_large_string(kind), pa.types.is_integer(kind)
    if not (text or whole):
        raise DataError(f"{file}: column 'value' is {kind}; a vocabulary is of strings or of whole numbers. Cast it")
    try:
        values = column.cast(pa.string() if text else pa.int64()).combine_chunks()
    except pa.ArrowInvalid as error:  # uint64 beyond int64
        raise DataError(f"{file}: column 'value' does not fit int64 ({one_line(error)}). Cast it to strings") from None
    if not len(values):
        raise DataError(f"{file}: the vocabulary is empty. Lower --min-count, or leave the feature out")
    if values.null_count:
        raise DataError(f"{file}: the vocabulary has a null, which is what is missing. Leave it out")
    if pc.count_distinct(values).as_py() < len(values):
        raise DataError(f"{file}: the vocabulary has a value twice. Leave one out")
    digest = digest_of(pa.chunked_array([values]))
    if said and said != digest:  # Arrow keeps the metadata of a table whose rows are changed
        raise DataError(
            f"{file}: its values were changed since it was written (sha256 {digest[:12]} now, {said[:12]} then). Make "
            "it anew by rtrain data prepare, or point vocabulary_file at the file of the version that is wanted"
        )
    return values, digest


def digest_of(values: pa.ChunkedArray) -> str:
    """sha256, in hex, of the values in the order of their rows: each as JSON (UTF-8, not escaped) and a line's end."""
    digest = hashlib.sha256()
    for chunk in values.chunks:
        for first in range(0, len(chunk), DIGEST_ROWS):
            digest.update(_lines(chunk.slice(first, DIGEST_ROWS)))
    return digest.hexdigest()


def _lines(values: pa.Array) -> bytes:
    """Each value as a line of JSON: by Arrow where nothing has to be escaped, ten times as fast."""
    if pa.types.is_integer(values.type):
        lines = pc.binary_join_element_wise(values.cast(pa.string()), "\n", "")
    elif pc.any(pc.match_substring_regex(values, ESCAPED)).as_py():
        return "".join(json.dumps(v, ensure_ascii=False) + "\n" for v in values.to_pylist()).encode()
    else:
        lines = pc.binary_join_element_wise('"', values, '"\n', "")
    return b"".join(lines.cast(pa.large_binary()).to_pylist())
