"""Typed features, of which the batches of `rtrain.batch` are made.

One `Schema` validates the training data, sizes the embedding tables and becomes the request of
the served endpoint, so that training and serving cannot drift apart.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rtrain.encodings import LARGEST, Encoding, finite
from rtrain.errors import ConfigError
from rtrain.managed import Managed
from rtrain.moment import Age, Entity, Moment
from rtrain.text import Text, TokenizerFile
from rtrain.vector import Embedding
from rtrain.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Dense:
    """One number a row, fed to the model as `(value - mean) / std`, or as its encoding."""

    name: str
    """Column in the data and key in a request."""
    entity: Entity = "context"
    """Whom the feature describes."""
    mean: float = 0.0
    """Subtracted from the raw value."""
    std: float = 1.0
    """Divides the raw value; must be positive."""
    missing: float | None = None
    """Raw value that stands for a null; none refuses nulls."""
    encoding: Encoding | None = None
    """`PiecewiseLinear` or `Quantiles` of the raw value, in place of mean and std."""

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ConfigError(f"feature {self.name!r}: std must be positive, got {self.std}")
        if self.encoding and (self.mean, self.std) != (0, 1):
            raise ConfigError(f"feature {self.name!r}: mean and std are not read beside an encoding. Leave them out")

    @property
    def width(self) -> int:
        """Columns of the model's input that it becomes."""
        return self.encoding.width if self.encoding else 1

    @property
    def kept(self) -> tuple[int, ...]:
        """Of each number that a row keeps of it, the columns that this one becomes."""
        return (self.width,)

    def scaled(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """Raw values [N] -> the one number of each that a row keeps; `encodings.widened` makes the columns of it."""
        return self.encoding.scaled(raw) if self.encoding else (raw - self.mean) / self.std

    def reach(self, largest: float = LARGEST) -> tuple[float, float]:
        """The smallest and largest raw value whose scaled number is not beyond `largest`, which float32 can hold."""
        if self.encoding:
            return self.encoding.reach(largest)
        return finite(self.mean - largest * self.std, self.mean + largest * self.std)

    def arrow_type(self) -> pa.DataType:
        """float64: wide enough for every number a column may hold."""
        return pa.float64()


@dataclass(frozen=True, kw_only=True)
class Id:
    """One categorical value a row, looked up in an embedding table.

    Give `rows` for integers 0..rows-1, or `vocabulary` for strings: the word at index i gets id
    i + 1, and id 0 stands for a missing or unknown word; `vocabulary_file` is the same of a file. Or `rows` and
    `hashed`, for values that nobody has counted: each gets the id that its hash gives, the same in every process and
    for ever, and id 0 stands for a missing one. Of two values with one id a model cannot tell which it reads: n values
    on average share with n / rows others.
    """

    name: str
    """Column in the data and key in a request."""
    entity: Entity = "context"
    """Whom the feature describes."""
    rows: int = 0
    """Rows of its table; ids are 0..rows-1. 0: take it from the vocabulary."""
    vocabulary: tuple[str, ...] = ()
    """The known words, for a column of strings."""
    vocabulary_file: Vocabulary | None = None
    """The known strings or whole numbers, in a file: millions, or those that `rtrain data prepare` has counted."""
    numbered: bool = False
    """Whether the data hold ids of `vocabulary_file` already, as prepared data do; requests hold the values."""
    hashed: Literal["words", "numbers"] | None = None
    """Whether values are hashed into the `rows`: strings, or whole numbers of any size."""
    managed: Managed | None = None
    """How rows are given to values, and taken again, while a model trains; none: each value's hash says its row."""
    table: str = ""
    """Table to look up in; features that name the same table share it. Empty: its own name."""

    def __post_init__(self) -> None:
        if (bool(self.rows), bool(self.vocabulary), bool(self.vocabulary_file)).count(True) != 1:
            raise ConfigError(
                f"feature {self.name!r}: give either rows (for integers) or vocabulary (for strings) or vocabulary_file"
            )
        if self.numbered and not self.vocabulary_file:
            raise ConfigError(f"feature {self.name!r}: numbered needs the vocabulary_file that its ids are of")
        if self.rows < 0:
            raise ConfigError(f"feature {self.name!r}: rows must be positive, got {self.rows}")
        if self.hashed and self.rows < 2:
            raise ConfigError(f"feature {self.name!r}: hashed needs rows, at least 2, got {self.rows}")
        if self.managed and not self.hashed:
            raise ConfigError(f"feature {self.name!r}: managed needs hashed='numbers', or 'words', and rows")
        if len(set(self.vocabulary)) != len(self.vocabulary):
            raise ConfigError(f"feature {self.name!r}: its vocabulary has a word twice")

    @property
    def table_name(self) -> str:
        """The table that the feature reads."""
        return self.table or self.name

    @property
    def table_rows(self) -> int:
        """Rows of the table, the row of unknown words included."""
        if self.vocabulary_file:
            return self.vocabulary_file.size + 1
        return self.rows or len(self.vocabulary) + 1

    def arrow_type(self) -> pa.DataType:
        """string of words, else int64."""
        return pa.string() if self.of_words else pa.int64()

    @property
    def of_words(self) -> bool:
        """Whether its column holds strings."""
        of_file = self.vocabulary_file and self.vocabulary_file.kind == "words" and not self.numbered
        return bool(self.vocabulary or of_file) or self.hashed == "words"

    @property
    def knows_missing(self) -> bool:
        """Whether a row of its table stands for a value that is not there."""
        return bool(self.vocabulary or self.vocabulary_file or self.hashed)


ANY_LENGTH = 1_000_000
"""Ids of a list whose schema states no `max_length`."""


@dataclass(frozen=True, kw_only=True)
class IdList(Id):
    """Any number of categorical values a row (jagged), pooled by the model.

    Lists of lists, as sessions of items, are read as one: all inner lists one behind the other, a null one as an empty
    one. `max_length` is of the whole; what lies beside the ids (weights, times) is in the same inner lists.
    """

    max_length: int = ANY_LENGTH
    """Longest list that is accepted. A model that reads it as a sequence under tensor or pipeline ranks pads to it."""
    mean_length: float | None = None
    """Ids of a row on average, by which tables are planned; none: `max_length`, and 1 where that is not stated."""
    weights: str = ""
    """Column of a number for each of a row's ids, any finite ones, which a request has too: their vectors are pooled as
    `sum(weight * vector)`, of a mean divided by `sum(abs(weight))`. Empty: every id counts as 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.numbered:
            raise ConfigError(
                f"feature {self.name!r}: a list is not numbered beforehand, since a request could not say its id 0. "
                "Let the data hold the values"
            )
        if self.max_length < 1:
            raise ConfigError(f"feature {self.name!r}: max_length must be at least 1, got {self.max_length}")
        if self.mean_length is not None and not 0 < self.mean_length <= self.max_length:
            raise ConfigError(
                f"feature {self.name!r}: mean_length must be above 0 and at most max_length ({self.max_length}), got "
                f"{self.mean_length}"
            )

    def arrow_type(self) -> pa.DataType:
        """A list of what `Id` takes."""
        return pa.list_(super().arrow_type())


@dataclass(frozen=True, kw_only=True)
class IdSequence(IdList):
    """An `IdList` in time order, oldest first; beyond `max_length` the newest are kept."""

    times: str = ""
    """Column of when each id was had, as many a row and rising: seconds since 1970, timestamps or dates; of one moment
    the order is the list's. A model is then given how many seconds each lies before the row's own moment,
    `schema.time`, which is a key of a request too, in seconds as the times are. Empty: the order alone is told."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """What is predicted: 0 or 1, or a number."""

    name: str = "label"
    """Column in the data; never part of a request."""
    kind: Literal["binary", "number"] = "binary"
    """binary: 0 or 1, trained by cross-entropy, predicted as a probability; number: any finite one (a rating, a price),
    trained by squared error, predicted as it is. All labels of a schema are of one kind."""
    optional: bool = False
    """Whether a row may be without it (null): its loss and metrics then leave that row out."""


Sequence = IdSequence  # what configs of earlier runs and exports name it

Many = IdList | Text
"""Features of any number of ids a row."""

Feature = Dense | Embedding | Id | IdList | IdSequence | Text | Moment | Age


@dataclass(frozen=True, kw_only=True)
class Schema:
    """All features of a model, its label, and the column that metrics group by."""

    features: tuple[Feature, ...]
    """Everything that the model reads."""
    label: Label = Label()
    """What the model predicts."""
    more_labels: tuple[Label, ...] = ()
    """What a model of several tasks predicts besides; their metrics are named `<label>_<metric>`."""
    group: str = ""
    """Id feature whose rows are ranked together (usually the user); empty: no ranking metrics."""
    time: str = ""
    """Column of seconds since 1970 that orders the rows; empty: nothing does, and `data.split=Random()` parts them."""
    weight: str = ""
    """Column of numbers of at least 0 that scale the rows' losses; empty: every row counts as 1.

    A step's loss is the sum of weight times loss over the sum of the weights of its global batch. Metrics do not read
    it: in them every row of a split counts as 1, so that they stay comparable with other weights and with none.
    """
    teacher: str = ""
    """Column of a teacher's logits, null where a row has none, which a model with `distillation` learns from; empty: no
    teacher. Never part of a request."""

    def __post_init__(self) -> None:
        if self.timed and not self.time:
            raise ConfigError(
                f"schema.time: it is empty, but feature {self.timed[0].name!r} has times, of which a model is told how "
                "long before the row's own moment they are. Name the column of that moment, or leave the times out"
            )
        self._check_made()
        beside = [name for name in (self.weight, self.teacher, *self.clocks, *self.id_weights) if name]
        names = [f.name for f in self.features] + [label.name for label in self.labels] + beside
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"schema: the name {name!r} is used twice")
        kinds = [f"{label.name!r} is {label.kind}" for label in self.labels]
        if len({label.kind for label in self.labels}) > 1:
            raise ConfigError(f"schema: all labels are of one kind, but {', '.join(kinds)}. Give each kind its own run")
        if self.teacher and (self.more_labels or self.predicts_numbers):
            raise ConfigError("schema.teacher: its logits are of one label of 0 or 1. Give it a schema with that alone")
        if self.group and self.group not in [f.name for f in self.ids if not isinstance(f, Many | Moment)]:
            raise ConfigError(f"schema.group: {self.group!r} is not an Id feature of this schema")
        for table, rows in ((f.table_name, f.table_rows) for f in self.ids):
            if rows != self.tables[table]:
                raise ConfigError(
                    f"schema: features of table {table!r} disagree on its rows: {self.tables[table]}, {rows}"
                )

            if len({getattr(f, "managed", None) for f in self.ids if f.table_name == table}) > 1:
                raise ConfigError(f"schema: features of table {table!r} disagree on how it is managed")

    def _check_made(self) -> None:
        """What `made` features read is there to be read."""
        for feature in self.made:
            if not self.time and (isinstance(feature, Age) or not feature.column):
                raise ConfigError(
                    f"schema.time: it is empty, but feature {feature.name!r} reads the row's own moment. "
                    "Name its column, or leave the feature out"
                )
            if feature.name in self.clocks:
                raise ConfigError(
                    f"feature {feature.name!r}: it is made of a column, and that name is a column's of moments. "
                    "Give it a name of its own"
                )
            if isinstance(feature, Age) and feature.column == self.time:
                raise ConfigError(
                    f"feature {feature.name!r}: its column is schema.time, {self.time!r}, of which every age is 0. "
                    "Name another, or leave it out"
                )

    @cached_property
    def dense(self) -> tuple[Dense | Embedding | Age, ...]:
        """The numbers, in the order of `Batch.dense`'s columns; an encoded one and a vector have several."""
        return tuple(f for f in self.features if isinstance(f, Dense | Embedding | Age))

    @cached_property
    def plain_numbers(self) -> tuple[Dense, ...]:
        """Those of one number a row."""
        return tuple(f for f in self.features if isinstance(f, Dense))

    @cached_property
    def plain_ids(self) -> tuple[Id, ...]:
        """Those of one id a row, of a table of less than 2^31 rows, that the data hold as it is."""
        single = (f for f in self.features if type(f) is Id and f.table_rows <= 2**31)
        return tuple(f for f in single if not (f.vocabulary or f.hashed) and (f.numbered or not f.vocabulary_file))

    @cached_property
    def dense_widths(self) -> tuple[int, ...]:
        """Columns of `Batch.dense` of each number; their sum is what a model is built for."""
        return tuple(f.width for f in self.dense)

    @cached_property
    def kept_widths(self) -> tuple[int, ...]:
        """The same of each number that a row keeps: of a vector all, and of one that is encoded itself alone."""
        return tuple(width for f in self.dense for width in f.kept)

    @cached_property
    def ids(self) -> tuple[Id | Text | Moment, ...]:
        """The categorical features (single, list, sequence, of texts and of moments), in the order of `Batch.ids`."""
        return tuple(f for f in self.features if isinstance(f, Id | Text | Moment))

    @property
    def tokenizers(self) -> dict[str, TokenizerFile]:
        """Of each text that has one, by its name."""
        return {f.name: f.tokenizer for f in self.features if isinstance(f, Text) and f.tokenizer}

    @cached_property
    def timed(self) -> tuple[IdSequence, ...]:
        """The sequences that have times, in the order of `ids`."""
        return tuple(f for f in self.features if isinstance(f, IdSequence) and f.times)

    @cached_property
    def made(self) -> tuple[Moment | Age, ...]:
        """What is made of a column of moments; no column is called as these are."""
        return tuple(f for f in self.features if isinstance(f, Moment | Age))

    @cached_property
    def stamps(self) -> tuple[str, ...]:
        """Columns of a moment each that features are made of or told by; the row's own comes last."""
        stamps = dict.fromkeys(f.column or self.time for f in self.made)
        own = [self.time] if self.timed or any(isinstance(f, Age) for f in self.made) else []
        return (*(name for name in stamps if name not in own), *own)

    @cached_property
    def clocks(self) -> tuple[str, ...]:
        """Columns that tell what is `timed` or `made`: lists of moments, which sequences may share, and `stamps`."""
        return (*dict.fromkeys(f.times for f in self.timed), *self.stamps)

    @cached_property
    def weighted(self) -> tuple[IdList, ...]:
        """The lists whose ids have weights, in the order of `ids`."""
        return tuple(f for f in self.features if isinstance(f, IdList) and f.weights)

    @cached_property
    def id_weights(self) -> tuple[str, ...]:
        """Columns of those weights, which lists may share."""
        return tuple(dict.fromkeys(f.weights for f in self.weighted))

    @cached_property
    def labels(self) -> tuple[Label, ...]:
        """All that is predicted, in the order of the model's outputs."""
        return (self.label, *self.more_labels)

    @property
    def predicts_numbers(self) -> bool:
        """Whether the labels are numbers, not 0 or 1."""
        return self.label.kind == "number"

    @property
    def metric_prefixes(self) -> tuple[str, ...]:
        """What stands before the names of each label's metrics: nothing for the first, `<label>_` for a further one."""
        return "", *(f"{label.name}_" for label in self.more_labels)

    @property
    def tables(self) -> dict[str, int]:
        """Table name -> rows, in order of first use."""
        first: dict[str, int] = {}
        for feature in self.ids:
            first.setdefault(feature.table_name, feature.table_rows)
        return first

    def arrow(self, *, label: bool) -> pa.Schema:
        """The columns that rows must have: all of training data, or of a request (`label=False`)."""
        columns = [pa.field(f.name, f.arrow_type()) for f in self.features if not isinstance(f, Moment | Age)]
        moments = [pa.int64() if name in self.stamps else pa.list_(pa.int64()) for name in self.clocks]
        columns += [pa.field(name, kind) for name, kind in zip(self.clocks, moments, strict=True)]
        columns += [pa.field(name, pa.list_(pa.float64())) for name in self.id_weights]
        if label:
            columns += [pa.field(one.name, pa.float64()) for one in self.labels]
            columns += [pa.field(name, pa.float64()) for name in (self.weight, self.teacher) if name]
        return pa.schema(columns)
