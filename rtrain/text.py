"""Texts as features: the ids of their words or of a tokenizer's tokens, in their order."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from rtrain.errors import ConfigError, DataError, did_you_mean
from rtrain.moment import Entity
from rtrain.storage import Folder
from rtrain.storage.paths import located


@dataclass(frozen=True, kw_only=True)
class TokenizerFile:
    """A Hugging Face tokenizer's file, tokenizer.json; of which a config knows no more than this.

    Raises:
        DataError: a file that is not there or is no tokenizer, or another one than `sha256` says.
    """

    file: str
    """Path or URI of the file."""
    sha256: str = ""
    """Of its bytes, in hex. Empty: taken from the file."""
    rows: int = 0
    """How many tokens it knows. 0: taken from the file."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", located(self.file))
        if self.sha256 and self.rows:
            return  # of a stored config, which is read where the file is not
        content = _content(self.file)
        sha256 = hashlib.sha256(content).hexdigest()
        if self.sha256 and self.sha256 != sha256:
            raise self.other(sha256)
        object.__setattr__(self, "sha256", sha256)
        object.__setattr__(self, "rows", _tokenizer(self.file, content).get_vocab_size())

    def other(self, sha256: str) -> DataError:
        """What to raise where the file has this digest instead."""
        return DataError(
            f"{self.file}: tokenizer of another version: it has sha256 {sha256}, but {self.sha256} is asked for, so "
            "that rows of the table would stand for other tokens. Put that version back, or train a new run with this "
            "one"
        )

    def check(self) -> None:
        """Read it, or have read it before.

        Raises:
            DataError: as the class.
        """
        self.opened()

    def opened(self) -> Any:
        """The library's `Tokenizer`, which neither pads nor cuts; held by the process.

        Raises:
            DataError: as the class.
        """
        if self.sha256 not in _HELD:
            self.adopt(self.file)
        return _HELD[self.sha256][0]

    def adopt(self, file: str | Path) -> None:
        """Read it from a copy of the file, as an export has one.

        Raises:
            DataError: as the class.
        """
        content = _content(str(file))
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 != self.sha256:
            raise self.other(sha256)
        made = _tokenizer(self.file, content)
        made.no_padding()
        made.no_truncation()
        _HELD[sha256] = made, content

    def write(self, path: Path) -> None:
        """The same bytes as a file of their own."""
        self.check()
        path.write_bytes(_HELD[self.sha256][1])


_HELD: dict[str, tuple[Any, bytes]] = {}
"""What this process has read, by sha256: a file is read once, whatever reads it."""


def _content(uri: str) -> bytes:
    parent, _, name = uri.rpartition("/")
    folder = Folder(parent or "/")
    if not name or not folder.exists(name):
        near = did_you_mean(name, folder.names()) or ". Give the path of a tokenizer.json"
        raise DataError(f"{uri}: there is no such file, which is to be a tokenizer{near}")
    return folder.read(name)


def _tokenizer(uri: str, content: bytes) -> Any:
    try:
        return library().Tokenizer.from_str(content.decode())
    except DataError:
        raise
    except Exception as error:  # the library raises a bare Exception
        raise DataError(f"tokenizer: {uri} cannot be read ({' '.join(str(error).split())[:200]})") from None


def library() -> Any:
    """The package `tokenizers`.

    Raises:
        DataError: it is not installed.
    """
    try:
        import tokenizers
    except ImportError:
        raise DataError("tokenizer: the package `tokenizers` is not installed. Run pip install rtrain[text]") from None
    return tokenizers


@dataclass(frozen=True, kw_only=True)
class Text:
    """A string a row, read as the ids of its words or tokens: a list (jagged) that the model pools.

    Give `rows`, into which its words in lower case are hashed: no vocabulary is kept and every new word has an id,
    which it may share. Or `tokenizer`, whose tokens have a row each, without those that it would add around a text. A
    missing or an empty text has none.
    """

    name: str
    """Column of strings in the data and key in a request."""
    entity: Entity = "context"
    """Whom the feature describes."""
    rows: int = 0
    """Rows of its table, into which words are hashed. 0: take it from the tokenizer."""
    tokenizer: TokenizerFile | None = None
    """What cuts it into tokens; none: words."""
    max_length: int = 32
    """Words or tokens that are read of a text, its first ones."""
    table: str = ""
    """Table to look up in; features that name the same table share it. Empty: its own name."""

    mean_length: ClassVar[None] = None
    """As `schema.IdList.mean_length`, which no text states."""

    def __post_init__(self) -> None:
        if bool(self.rows) == bool(self.tokenizer):
            raise ConfigError(f"feature {self.name!r}: give either rows (for hashed words) or tokenizer")
        for name, value in (("rows", self.table_rows), ("max_length", self.max_length)):
            if value < 1:
                raise ConfigError(f"feature {self.name!r}: {name} must be at least 1, got {value}")

    @property
    def table_name(self) -> str:
        """The table that the feature reads."""
        return self.table or self.name

    @property
    def table_rows(self) -> int:
        """Rows of the table."""
        return self.tokenizer.rows if self.tokenizer else self.rows

    def arrow_type(self) -> pa.DataType:
        """string"""
        return pa.string()
