"""What is to be prepared, and how."""

from dataclasses import dataclass

from rtrain.data.prepare.aggregates import Aggregate
from rtrain.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Rows of a file or folder -> Parquet in the order of time, with what is known of each row from older ones."""

    source: str
    """CSV, TSV, JSON lines or Parquet, text also compressed: a file, or a folder of one format; a path or any URI."""
    out: str
    """Folder or URI of what is made; new or empty."""
    time: str
    """Column to sort by: seconds since 1970, timestamps or dates, or ISO 8601 text, of UTC where it names no zone."""
    vocabularies: tuple[str, ...] = ()
    """Columns of words or of whole numbers that become rows of a table: 1 for the most frequent; 0 for what is missing
    or rarer than `min_count`."""
    min_count: int = 1
    """How often a value must come for a row of its own."""
    label: str = ""
    """Column that the proposed schema predicts; empty: whoever pastes it says."""
    text: tuple[str, ...] = ()
    """Columns that are words, whatever they look like."""
    aggregates: tuple[Aggregate, ...] = ()
    """What is added of strictly older rows."""
    memory_gb: float = 1.0
    """For DuckDB in each task; beyond, it uses a temporary folder."""

    def __post_init__(self) -> None:
        for name in ("source", "out", "time"):
            if not getattr(self, name).strip():
                raise ConfigError(f"prepare: {name} is empty")
        if self.min_count < 1:
            raise ConfigError(f"prepare: min_count must be at least 1, got {self.min_count}")
        if not self.memory_gb > 0:
            raise ConfigError(f"prepare: memory_gb must be positive, got {self.memory_gb:g}")
        if self.label and self.label in (self.time, *self.vocabularies):
            raise ConfigError(f"prepare: {self.label!r} is the label, and not the time or one with a vocabulary")
        if self.time in self.vocabularies:
            raise ConfigError(f"prepare: {self.time!r} is the time, and cannot have a vocabulary")
        for name, given in (("vocabularies", self.vocabularies), ("text", self.text)):
            if len(set(given)) < len(given):
                raise ConfigError(f"prepare: {name} has a column twice, got {', '.join(given)}")
        made = self.made
        if twice := next((name for name in made if made.count(name) > 1), ""):
            raise ConfigError(f"prepare: two aggregates make a column {twice!r}. Leave one out")

    @property
    def made(self) -> list[str]:
        """Columns that aggregates add."""
        return [name for one in self.aggregates for name in one.columns]

    @property
    def keys(self) -> list[str]:
        """Columns that aggregates are by, each once."""
        return list(dict.fromkeys(one.by for one in self.aggregates))

    @property
    def as_words(self) -> set[str]:
        """Columns whose values are told apart and no more, so that words and numbers may be mixed in them."""
        return {*self.vocabularies, *self.text, *self.keys}

    def of_key(self, key: str) -> tuple[Aggregate, ...]:
        """Aggregates by this key."""
        return tuple(one for one in self.aggregates if one.by == key)

    def named(self) -> dict[str, str]:
        """Each column that must be in the source, and who asks for it."""
        asked = {self.time: "--time"} | ({self.label: "--label"} if self.label else {})
        for names, option in ((self.vocabularies, "--vocabulary"), (self.text, "--text")):
            asked |= dict.fromkeys(names, option)
        for one in self.aggregates:
            asked |= dict.fromkeys((one.by, *one.of_columns), "--aggregate")
        return asked
