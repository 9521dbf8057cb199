"""The known values of an id feature, in a file beside the data: a config names the file, and which version of it."""

from dataclasses import dataclass
from typing import Literal

from rtrain.errors import ConfigError
from rtrain.storage.paths import located


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A Parquet file whose column `value` holds each known value once; the value of row i gets id i + 1.

    `rtrain data prepare` writes such files and prints this config of each; `rtrain.vocabulary_of(file)` makes one.
    """

    file: str
    """Path or URI."""
    size: int
    """How many values it holds."""
    sha256: str
    """Of the values in their order, in hex: a file of others is another version, and refused."""
    kind: Literal["words", "numbers"] = "words"
    """Whether they are strings or whole numbers of 64 bits."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", located(self.file))
        if self.size < 1:
            raise ConfigError(f"vocabulary {self.file}: size must be at least 1, got {self.size}")
