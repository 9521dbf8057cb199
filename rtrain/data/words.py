"""Texts as the ids of their words, in their order: what is known of an item before anybody had it."""

import re
import unicodedata
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rtrain.data.hashed import hashes
from rtrain.errors import ConfigError, DataError

WORD = re.compile(r"\w+")
"""Letters, digits and underscores of any language."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """A text by its words in lower case, in their order; a missing or an empty one has none.

    `Text(name=..., rows=..., max_length=...)` reads the very same ids; it can also have a tokenizer's tokens.

    A word's id is its hash, the same in every process, so that no vocabulary is kept and every new word has an id;
    of two words with one id a model cannot tell which it reads.
    """

    name: str
    """Column in the data, of strings."""
    rows: int = 16_384
    """Rows of its table, into which the words are hashed: the more, the fewer share one."""
    longest: int = 16
    """Words that are read of a text, the first ones."""

    def __post_init__(self) -> None:
        for name in ("rows", "longest"):
            if getattr(self, name) < 1:
                raise ConfigError(f"feature {self.name!r}: {name} must be at least 1, got {getattr(self, name)}")

    @property
    def table_rows(self) -> int:
        """`rows`."""
        return self.rows

    def read(self, column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
        """Of each text the ids of its words, list<int64>; `where`: what a message calls the table.

        Raises:
            DataError: a column that is not of strings.
        """
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
            raise DataError(
                f"{where}: column {self.name!r} is {column.type}, but Words need strings. Cast it, or give Id or Bins"
            )
        texts = column.cast(pa.large_string()).fill_null("")
        once = texts.unique()  # where there is a row an interaction, a title comes often
        words = [words_of(text)[: self.longest] for text in once.to_pylist()]
        flat = pa.array([word for of in words for word in of], pa.large_string())
        ids = (hashes(pa.table({self.name: flat})) % np.uint64(self.rows)).astype(np.int64)
        offsets = np.cumsum([0, *map(len, words)])
        lists = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(ids))
        return pa.chunked_array([lists.take(pc.index_in(texts, value_set=once).combine_chunks())])


def words_of(text: str) -> list[str]:
    """In their order; what looks alike is one word, however its accents are stored."""
    return WORD.findall(unicodedata.normalize("NFKC", text).lower())
