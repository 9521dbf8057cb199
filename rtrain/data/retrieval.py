"""Positive interactions for models that find items among all: pairs of user and item, or users' histories.

Pairs may come with the graph of them all.

An evaluation scan gives every item of the catalogue first, then a row a user: whom to find items for.
Negatives are ids in the batch, so that they do not depend on the number of ranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from rtrain.batch import NONE
from rtrain.data import sources
from rtrain.data.blank import blank_edges, blank_positives
from rtrain.data.feedback import found_at, from_parquet, from_text, is_text
from rtrain.data.holdout import LeaveOneOut, Random, RandomPerUser
from rtrain.data.leakage import Leakage
from rtrain.data.negatives import Negatives
from rtrain.data.of_users import HISTORY
from rtrain.data.protocol import Data, NotCounted
from rtrain.data.retrieval_batch import RetrievalBatch
from rtrain.data.retrieval_set import RetrievalDataset
from rtrain.data.side import SideFeatures
from rtrain.data.split import ByTime, check_train_rows
from rtrain.errors import ConfigError, DataError


@dataclass(frozen=True)
class RetrievalFacts:
    """What a model asks of the data before they are opened."""

    users: int
    items: int
    longest: int | None
    """Positions of the longest history; none: samples are pairs of a user and an item."""
    negatives: int
    """Drawn for each positive."""
    graph: bool = False
    """Whether batches carry the graph of all interactions of training."""
    user_features: Mapping[str, int] = field(default_factory=dict)
    """Beside the users' ids: name in a batch -> rows of its table."""
    item_features: Mapping[str, int] = field(default_factory=dict)
    """Beside the items' ids."""
    texts: Mapping[str, int] = field(default_factory=dict)
    """Those of items that are words in their order: name in a batch -> most words of an item."""
    lengths: Mapping[str, int] = field(default_factory=dict)
    """Of those of items that are no list of any length: name in a batch -> most ids of an item."""
    by: str = "uniform"
    """How negatives are drawn, see `Negatives`."""
    power: float = 1.0
    """Of a draw by popularity, its exponent."""
    known: bool = False
    """Whether batches tell which of their positives a user had."""


@dataclass(frozen=True, kw_only=True)
class _Positives(Data):
    """What pairs and histories share."""

    gives: ClassVar[Any] = RetrievalBatch

    source: str
    """A named data set (`ml-100k`), a Parquet file or folder anywhere, or a text of `user item item ...` lines: a local
    file, or one anywhere whose name ends in `.txt` or `.txt.gz`."""
    users: int
    """Rows of the users' table; ids are 0..users-1."""
    items: int
    """Rows of the items' table; ids are 0..items-1. Ranked are those that occur in the data."""
    user: str = "user_id"
    """Column of the users' ids."""
    item: str = "item_id"
    """Column of the items' ids."""
    raw_ids: bool = False
    """Whether users' and items' ids are words, or numbers of any size: they are numbered here, from 0 on, numbers by
    size and words (as all of a text are) by their bytes. False: they are rows of the tables."""
    time: str = "timestamp"
    """Column that orders a user's interactions; empty: the order of the source."""
    rating: str = ""
    """Column that says how much an item was liked; empty: every row is a positive."""
    at_least: float | None = None
    """Least rating of a positive."""
    split: ByTime | LeaveOneOut | RandomPerUser | Random = LeaveOneOut()
    """How interactions are parted into train, valid and test."""
    hide_seen: bool = True
    """Whether an item that a user had before is no candidate for that user; as an answer it is left out then. False:
    all items are candidates, and what is had again is to be found too (music, groceries)."""
    negatives: Negatives = Negatives()
    """How items that a user did not have are drawn."""
    train_rows: int | None = None
    """Samples to train on, the last ones; none, or more than there are: all."""
    leakage: Leakage = "refuse"
    """refuse: a run does not start when two splits have an interaction in common (user, item and time; of `Pairs`
    without times user and item); allow: it does. The same item at another time is another interaction."""
    prefetch: int = 2
    """Batches that a thread keeps ready, for a GPU in its memory; 0: no thread."""

    def __post_init__(self) -> None:
        for name in ("users", "items"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name}: must be at least 1, got {getattr(self, name)}")
        if bool(self.rating) != (self.at_least is not None):
            raise ConfigError("data.rating: rating and at_least go together; give both or none")
        if self.negatives.count >= self.items:
            raise ConfigError(
                f"data.negatives.count: {self.negatives.count} negatives of {self.items} items (data.items). Lower it"
            )
        check_train_rows(self.train_rows)
        if self.raw_ids and self.side:
            raise ConfigError(
                "data.raw_ids: the tables of users and items have the numbers of rows as keys, which raw ids get only "
                "here. Number the ids first, or leave the features out"
            )
        if self.prefetch < 0:
            raise ConfigError(f"data.prefetch: must be at least 0, got {self.prefetch}")

    @property
    def group(self) -> str:
        """Items are ranked for each user."""
        return "user"

    @property
    def slices(self) -> tuple[str, ...] | None:
        """The number of a user's interactions; where there is a table of users, its columns too, known once open."""
        return None if "user" in self.side else (HISTORY,)

    @property
    def longest(self) -> int | None:
        """Positions of a history; none: a sample is a pair."""
        return None

    @property
    def graph(self) -> bool:
        """Whether batches carry the graph of all interactions of training."""
        return False

    @property
    def side(self) -> dict[str, SideFeatures]:
        """Tables of what is known of them beside their ids: by "user" and "item"."""
        return {}

    @property
    def facts(self) -> RetrievalFacts:
        """What a model may ask of the data before they are opened."""
        beside = {of: {f"{of}_{f.name}": f.table_rows for f in side.features} for of, side in self.side.items()}
        known = self.side.get("item")
        texts, lengths = (known.in_order, known.longest) if known else (NONE, NONE)
        return RetrievalFacts(
            self.users, self.items, self.longest, self.negatives.count, self.graph, beside.get("user", NONE),
            beside.get("item", NONE), {f"item_{name}": longest for name, longest in texts.items()},
            lengths={f"item_{name}": most for name, most in lengths.items()},
            by=self.negatives.by, power=self.negatives.power, known=self.negatives.tells_known,
        )  # fmt: skip

    def blank(self, rows: int, global_rows: int) -> RetrievalBatch:
        """See `Data` and `blank_positives`.

        Raises:
            NotCounted: a graph of unknown size, a list of any length, or a catalogue that is dealt to histories.
        """
        side = {}
        for of, known in self.side.items():
            for endless in (feature.name for feature in known.features if feature.name not in known.longest):
                raise NotCounted(f"data.{of}_features: {endless!r} is a list of any length. Give it a max_length")
            side[of] = {f"{of}_{name}": most for name, most in known.longest.items()}
        return blank_positives(
            rows, global_rows, items=self.items, positions=self.longest, negatives=self.negatives, side=side
        )

    def check_source(self) -> None:
        """Look whether a local source is there; nothing is fetched.

        Raises:
            DataError: it is not.
        """
        if self.source not in sources.NAMES and "://" not in self.source and not Path(self.source).exists():
            raise DataError(f"{self.source}: no such file or folder. Check data.source")

    def _refuse_columns(self) -> None:
        """Refuse columns that are named of a text, which has none."""
        plain = {"user": "user_id", "item": "item_id", "time": "timestamp", "rating": ""}
        for name, stock in plain.items():
            if (column := getattr(self, name)) not in ("", stock):
                raise ConfigError(
                    f"data.{name}: {column!r}, but {self.source} is a text of lines 'user item item ...', which has no "
                    f"columns. Leave data.{name} out, or write the interactions as Parquet"
                )

    def open(self) -> RetrievalDataset:
        """The interactions, checked and split.

        Raises:
            DataError: a source that is missing or damaged, ids beyond the tables, or a split that leaves nobody.
        """
        self.check_source()
        in_rows = self.source in sources.NAMES or not is_text(self.source)
        if in_rows:
            source = str(sources.get(self.source)) if self.source in sources.NAMES else self.source
            feedback = from_parquet(
                source, user=self.user, item=self.item, time=self.time, rating=self.rating, at_least=self.at_least,
                raw=self.raw_ids,
            )  # fmt: skip
        else:
            self._refuse_columns()
            feedback = from_text(self.source, raw=self.raw_ids)
        both = (("user", feedback.user, self.users), ("item", feedback.item, self.items))
        for name, ids, rows in both:
            if len(ids) and (ids.min() < 0 or ids.max() >= rows):
                wrong = int(ids.max() if ids.max() >= rows else ids.min())
                do = f"Set data.{name}s to {wrong + 1} or more" if wrong >= 0 else f"Number the {name}s from 0 on"
                column, at = {"user": self.user, "item": self.item}[name], ""
                if self.raw_ids:
                    raise DataError(f"{self.source}: it has {wrong + 1} {name}s, more than data.{name}s={rows}. {do}")
                if in_rows:
                    at = f", at {found_at(source, column, wrong, rating=self.rating, at_least=self.at_least)}"
                raise DataError(
                    f"{self.source}: {name} {wrong} is not one of data.{name}s={rows} (valid 0..{rows - 1}){at}. {do}"
                )
        return RetrievalDataset(
            feedback,
            self.split.assign(feedback),
            negatives=self.negatives,
            longest=self.longest,
            train_rows=self.train_rows,
            prefetch=self.prefetch,
            source=self.source,
            leakage=self.leakage,
            in_time=self.split.in_time,
            hide_seen=self.hide_seen,
            tables=(self.users, self.items) if self.graph else None,
            side={
                of: {f"{of}_{name}": lists for name, lists in self.side[of].open(ids, rows=rows, of=of).items()}
                for of, ids, rows in both
                if of in self.side
            },
            users_table=self.side.get("user"),
        )


@dataclass(frozen=True, kw_only=True)
class Pairs(_Positives):
    """A sample is one interaction: its user, its item, and items that the user did not have."""

    user_features: SideFeatures | None = None
    """What is known of users beside their ids; none: nothing."""
    item_features: SideFeatures | None = None
    """What is known of items beside their ids; none: nothing."""

    @property
    def side(self) -> dict[str, SideFeatures]:
        """Those that are given."""
        given = {"user": self.user_features, "item": self.item_features}
        return {of: side for of, side in given.items() if side is not None}


@dataclass(frozen=True, kw_only=True)
class Graph(Pairs):
    """As `Pairs`; and every batch carries the graph of all interactions of training, with all its nodes."""

    edges: int | None = None
    """Interactions of training, at most, what was had twice counted once: by it `plan` knows the graph's size. Data
    that have more are refused. None: `plan` counts neither activations nor time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.edges is not None and self.edges < 1:
            raise ConfigError(f"data.edges: must be at least 1, or none, got {self.edges}")

    @property
    def graph(self) -> bool:
        """It does."""
        return True

    def open(self) -> RetrievalDataset:
        """As `Pairs`.

        Raises:
            DataError: also where there are more edges than stated.
        """
        opened = super().open()
        assert opened.graph is not None, "it was asked for"
        if self.edges is not None and opened.graph.count > self.edges:
            raise DataError(
                f"{self.source}: {opened.graph.count:,} different interactions train, but data.edges says at most "
                f"{self.edges:,}. Raise it, or leave it out"
            )
        return opened

    def blank(self, rows: int, global_rows: int) -> RetrievalBatch:
        """See `Data` and `blank_edges`.

        Raises:
            NotCounted: also where `edges` is none.
        """
        if self.edges is None:
            raise NotCounted("data: a graph's size only open data tell. Give data.edges, the interactions that train")
        return blank_edges(super().blank(rows, global_rows), self.users, self.items, self.edges)


@dataclass(frozen=True, kw_only=True)
class Histories(_Positives):
    """A sample is one user: the newest items in order, each position with the item that came next."""

    length: int = 50
    """Positions of a history that are read, the newest; older ones are left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 1:
            raise ConfigError(f"data.length: must be at least 1, got {self.length}")

    @property
    def longest(self) -> int:
        """`length`."""
        return self.length
