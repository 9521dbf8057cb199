"""Positive interactions for models that find items among all: pairs of user and item, or users' histories.

An evaluation scan gives every item of the catalogue first, then a row a user: whom to find items for.
Negatives are ids in the batch, so that they do not depend on the number of ranks.

Shape legend: B rows, T positions of the longest row (1 for pairs), K negatives of a position.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from rtrain.data import sources
from rtrain.data.columns import Lists
from rtrain.data.feedback import Feedback, from_parquet, from_text
from rtrain.data.holdout import TEST, TRAIN, VALID, Codes, LeaveOneOut, Random, RandomPerUser
from rtrain.data.negatives import Negatives, Sampler
from rtrain.data.order import Order, Window
from rtrain.data.reader import Whole
from rtrain.data.samples import Samples
from rtrain.data.split import ByTime, Ranges, Split, check_train_rows, trained_on
from rtrain.errors import ConfigError, DataError
from rtrain.metrics.state import Retrieved
from rtrain.objectives.catalogue import CatalogueTally
from rtrain.objectives.ranks import Alone
from rtrain.schema import Jagged

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class RetrievalFacts:
    """What a model asks of the data before they are opened."""

    users: int
    items: int
    longest: int | None
    """Positions of the longest history; none: samples are pairs of a user and an item."""


@dataclass
class RetrievalBatch:
    """One rank's share of a global batch: of training, of the catalogue, or of those whom items are found for."""

    ids: Jagged
    """Whom, and the candidates `item`: of each position its positive, then its K negatives."""
    target: Tensor
    """float32 [B, T]: 1 where a position has a positive"""
    row: Tensor
    """int64 [B]: the sample's number in its data set; -1 pads"""
    last: Tensor
    """int64 [B]: the position that items are found from"""
    global_rows: int
    loss_units: int
    """Positives of the global batch: its loss is a mean over them."""
    items: Ids | None = None
    """Of a batch of the catalogue: the item of each row."""
    seen: Lists | None = None
    """Of a batch of users: the items that are left out of what is found."""
    positives: Lists | None = None
    """Of a batch of users: the items to be found."""

    made_by: ClassVar[str] = "Pairs or Histories"

    @property
    def rows(self) -> int:
        """B, padding included."""
        return int(self.row.shape[0])

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Nothing but the vectors of the ids."""
        return ()

    def padded(self, rows: int) -> "RetrievalBatch":
        """With rows without ids or targets at its end, up to `rows`."""
        extra = rows - self.rows
        if extra == 0:
            return self
        lengths = self.ids.lengths.view(len(self.ids.keys), self.rows)
        return replace(
            self,
            ids=Jagged(self.ids.keys, self.ids.values, pad(lengths, (0, extra)).flatten()),
            target=pad(self.target, (0, 0, 0, extra)),
            row=pad(self.row, (0, extra), value=-1),
            last=pad(self.last, (0, extra)),
        )

    def to(self, device: torch.device) -> "RetrievalBatch":
        """A copy on another device; what only the host reads stays there."""
        if self.row.device == device:
            return self
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ("target", "row", "last")}
        return replace(self, ids=self.ids.to(device), **moved)


@dataclass(frozen=True)
class Rows:
    """Some of a data set's samples of one kind, by number."""

    data: "RetrievalDataset"
    numbers: Ids

    def select(self, indices: NDArray[np.integer]) -> "Rows":
        """The samples at the given places."""
        return Rows(self.data, self.numbers.take(indices))

    def batch_of(self, parts: Sequence["Rows"], whole: Whole) -> RetrievalBatch:
        """The samples of all parts."""
        numbers = np.concatenate([part.numbers for part in parts])
        start, stop = self.data.ranges["train"]
        if numbers[0] < start or numbers[0] >= stop:
            return self.data.asked(numbers, whole.rows)
        seed, epoch = whole.key
        if seed is None:
            raise ConfigError("the training split of positive interactions is read in a seed's order alone")
        return self.data.trained(numbers, start + whole.places, (seed, epoch))


class RetrievalDataset(Samples[RetrievalBatch]):
    """Positive interactions, split, with their negatives."""

    split_field = "data.split"
    baseline_name = "the most popular items"

    def __init__(self, config: "_Positives", feedback: Feedback, codes: Codes):
        self.feedback, self.codes, self.config = feedback, codes, config
        self.users, self.starts = feedback.starts()
        self.catalogue = np.unique(feedback.item)
        """Every item that occurs, rising."""
        train = codes == TRAIN
        if not train.any():
            raise DataError("data.split: it leaves nothing to train on. Bring more data, or change data.split")
        most = int(self._per_user(train).max())
        if config.negatives.count and most >= len(self.catalogue):
            user = self.users[int(self._per_user(train).argmax())]
            raise DataError(
                f"{config.source}: user {user} had all {most} items, so there is no negative to draw. "
                "Drop that user, or set data.negatives.count to 0"
            )
        self.sampler = Sampler(config.negatives, self.catalogue, feedback.user[train], feedback.item[train])
        self.history = config.longest is not None
        samples = self._samples()
        ranges: Ranges = {}
        at = 0
        for split, of in samples.items():
            if not len(of):
                raise DataError(
                    f"data.split: {split} would be without a user: too few interactions of each. "
                    "Bring more data, or change data.split"
                )
            ranges[split] = (at, at + len(of))
            at += len(of)
        ranges["train"] = trained_on(ranges["train"], config.train_rows)
        self._of = np.concatenate(list(samples.values()))
        counted = [feedback.fingerprint, hashlib.sha256(codes.tobytes()).hexdigest(), config.longest, ranges]
        super().__init__(ranges, hashlib.sha256(json.dumps(counted).encode()).hexdigest()[:16], config.prefetch)

    def _samples(self) -> dict[Split, Ids]:
        """What each sample stands for: an interaction (training on pairs), else a user's place."""
        counts = {code: self._per_user(self.codes == code) for code in (TRAIN, VALID, TEST)}
        known = counts[TRAIN] > 0  # nobody can be asked of whom nothing was learned
        train = np.flatnonzero(counts[TRAIN] >= 2) if self.history else np.flatnonzero(self.codes == TRAIN)
        return {
            "train": train,
            "valid": np.flatnonzero(known & (counts[VALID] > 0)),
            "test": np.flatnonzero(known & (counts[TEST] > 0)),
        }

    def _per_user(self, mask: NDArray[np.bool_]) -> Ids:
        upto: Ids = np.concatenate([[0], np.cumsum(mask)])
        return upto.take(self.starts[1:]) - upto.take(self.starts[:-1])

    def _order(self, split: Split, seed: int | None) -> Order:
        return Order((self._range(split),), seed=seed, window_rows=self.rows(split))

    def _load(self, window: Window) -> Rows:
        return Rows(self, np.concatenate([np.arange(*block) for block in window.blocks]))

    def scan(self, split: Split, *, global_batch: int, rank: int, world_size: int) -> Iterator[RetrievalBatch]:
        """Of validation and test: every item of the catalogue, then every user, each once."""
        asked = super().scan(split, global_batch=global_batch, rank=rank, world_size=world_size)
        yield from self._catalogue(global_batch, rank, world_size)
        yield from asked

    def _catalogue(self, global_batch: int, rank: int, world_size: int) -> Iterator[RetrievalBatch]:
        for start in range(0, len(self.catalogue), global_batch):
            whole = self.catalogue[start : start + global_batch]
            mine = whole[rank * len(whole) // world_size : (rank + 1) * len(whole) // world_size]
            nothing = Lists.of(mine[:0], np.zeros(len(mine), np.int64))
            batch = self._batch(nothing, Lists.of(mine, np.ones(len(mine), np.int64)), np.full(len(mine), -1))
            yield replace(batch, global_rows=len(whole), items=mine)

    def baseline(self, split: Split, metrics: Sequence[Any]) -> Retrieved:
        """For every user the items that were had most often in training, less those that the user had."""
        had = np.searchsorted(self.catalogue, self.feedback.item[self.codes == TRAIN])
        often = np.bincount(had, minlength=len(self.catalogue))
        tally = CatalogueTally(lambda vectors: vectors, Alone(), depth=max(metric.k for metric in metrics))
        for batch in self.scan(split, global_batch=len(self.catalogue), rank=0, world_size=1):
            one = torch.ones(batch.rows, 1, 1)
            popularity = one if batch.items is None else torch.from_numpy(often).float()
            tally.add((one, popularity.view(-1, 1, 1, 1)), replace(batch, last=torch.zeros_like(batch.last)))
        return tally.scored()[0][""]

    def _rows_of(self, places: Ids, keep: NDArray[np.bool_], longest: int | None = None) -> Lists:
        """The items of users' interactions that `keep` names, of each the newest `longest`."""
        upto = np.concatenate([[0], np.cumsum(keep)])
        kept = Lists(self.feedback.item[keep], upto[self.starts])
        first, stop = kept.offsets[places], kept.offsets[places + 1]
        if longest is not None:
            first = np.maximum(first, stop - longest)
        return kept.cut(first, stop - first)

    def trained(self, numbers: Ids, whole: Ids, key: tuple[int, int]) -> RetrievalBatch:
        """Samples of training with their negatives; `whole`: the numbers of the global batch's."""
        of = self._of[numbers]
        if self.config.longest is None:
            user = self.feedback.user[of]
            ones = np.ones(len(of), np.int64)
            context, positives, units = Lists.of(user, ones), self.feedback.item[of], len(whole)
            lengths = ones
        else:
            both = self._rows_of(of, self.codes == TRAIN, self.config.longest + 1)
            lengths = both.lengths - 1
            context = both.cut(both.offsets[:-1], lengths)
            positives = both.cut(both.offsets[:-1] + 1, lengths).values
            user = np.repeat(self.users[of], lengths)
            units = int(np.minimum(self._per_user(self.codes == TRAIN)[self._of[whole]] - 1, self.config.longest).sum())
        sample = np.repeat(numbers, lengths)
        position = np.arange(len(sample)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        negatives = self.sampler.draw(key, sample, position, user)
        offered = np.concatenate([positives[:, None], negatives], axis=1)
        candidates = Lists.of(offered.ravel(), lengths * offered.shape[1])
        batch = self._batch(context, candidates, numbers, lengths)
        return replace(batch, global_rows=len(whole), loss_units=units)

    def asked(self, numbers: Ids, global_rows: int) -> RetrievalBatch:
        """Users of validation or test: what was known of them, and what is to be found."""
        places = self._of[numbers]
        start, stop = self.ranges["test"]
        testing = start <= numbers[0] < stop
        known = self.codes < (TEST if testing else VALID)
        seen = self._rows_of(places, known)
        positives = self._rows_of(places, self.codes == (TEST if testing else VALID))
        if self.config.longest is None:
            context = Lists.of(self.users[places], np.ones(len(places), np.int64))
        else:
            context = self._rows_of(places, known, self.config.longest)
        nothing = Lists.of(self.users[:0], np.zeros(len(places), np.int64))
        return replace(self._batch(context, nothing, numbers), global_rows=global_rows, seen=seen, positives=positives)

    def _batch(self, context: Lists, candidates: Lists, numbers: Ids, lengths: Ids | None = None) -> RetrievalBatch:
        rows = len(numbers)
        target = np.zeros((rows, max(1, lengths.max(initial=1) if lengths is not None else 1)), np.float32)
        if lengths is not None:
            target[np.arange(target.shape[1]) < lengths[:, None]] = 1.0
        both = np.concatenate([context.lengths, candidates.lengths]).astype(np.int32)
        values = np.concatenate([context.values, candidates.values]).astype(np.int64)
        return RetrievalBatch(
            ids=Jagged(
                ("history" if self.history else "user", "item"), torch.from_numpy(values), torch.from_numpy(both)
            ),
            target=torch.from_numpy(target),
            row=torch.from_numpy(numbers.astype(np.int64)),
            last=torch.from_numpy(np.maximum(context.lengths - 1, 0)),
            global_rows=rows,
            loss_units=rows,
        )


@dataclass(frozen=True, kw_only=True)
class _Positives:
    """What pairs and histories share."""

    gives: ClassVar[Any] = RetrievalBatch
    group: ClassVar[str] = "user"
    metric_prefixes: ClassVar[tuple[str, ...]] = ("",)

    source: str
    """A named data set (`ml-100k`), a Parquet file or folder anywhere, or a text file of `user item item ...` lines."""
    users: int
    """Rows of the users' table; ids are 0..users-1."""
    items: int
    """Rows of the items' table; ids are 0..items-1. Ranked are those that occur in the data."""
    user: str = "user_id"
    """Column of the users' ids."""
    item: str = "item_id"
    """Column of the items' ids."""
    time: str = "timestamp"
    """Column that orders a user's interactions; empty: the order of the source."""
    rating: str = ""
    """Column that says how much an item was liked; empty: every row is a positive."""
    at_least: float | None = None
    """Least rating of a positive."""
    split: ByTime | LeaveOneOut | RandomPerUser | Random = LeaveOneOut()
    """How interactions are parted into train, valid and test."""
    negatives: Negatives = Negatives()
    """How items that a user did not have are drawn."""
    train_rows: int | None = None
    """Samples to train on, the last ones; none, or more than there are: all."""
    prefetch: int = 2
    """Batches that a thread keeps ready; 0: no thread."""

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
        if self.prefetch < 0:
            raise ConfigError(f"data.prefetch: must be at least 0, got {self.prefetch}")

    @property
    def longest(self) -> int | None:
        """Positions of a history; none: a sample is a pair."""
        return None

    @property
    def facts(self) -> RetrievalFacts:
        """What a model may ask of the data before they are opened."""
        return RetrievalFacts(self.users, self.items, self.longest)

    def check_source(self) -> None:
        """Look whether a local source is there; nothing is fetched.

        Raises:
            DataError: it is not.
        """
        if self.source not in sources.NAMES and "://" not in self.source and not Path(self.source).exists():
            raise DataError(f"{self.source}: no such file or folder. Check data.source")

    def open(self) -> RetrievalDataset:
        """The interactions, checked and split.

        Raises:
            DataError: a source that is missing or damaged, ids beyond the tables, or a split that leaves nobody.
        """
        self.check_source()
        if self.source in sources.NAMES or not Path(self.source).is_file() or self.source.endswith(".parquet"):
            source = str(sources.get(self.source)) if self.source in sources.NAMES else self.source
            feedback = from_parquet(
                source, user=self.user, item=self.item, time=self.time, rating=self.rating, at_least=self.at_least
            )
        else:
            feedback = from_text(Path(self.source))
        for name, ids, rows in (("user", feedback.user, self.users), ("item", feedback.item, self.items)):
            if len(ids) and (ids.min() < 0 or ids.max() >= rows):
                wrong = int(ids.max() if ids.max() >= rows else ids.min())
                do = f"Set data.{name}s to {wrong + 1} or more" if wrong >= 0 else f"Number the {name}s from 0 on"
                raise DataError(
                    f"{self.source}: {name} {wrong} is not one of data.{name}s={rows} (valid 0..{rows - 1}). {do}"
                )
        self._check_repeats(feedback)
        return RetrievalDataset(self, feedback, self.split.assign(feedback))

    def _check_repeats(self, feedback: Feedback) -> None:
        """Nothing by default: of histories a repeated item is a part."""


@dataclass(frozen=True, kw_only=True)
class Pairs(_Positives):
    """A sample is one interaction: its user, its item, and items that the user did not have."""

    def _check_repeats(self, feedback: Feedback) -> None:
        pair = feedback.user * self.items + feedback.item
        order = np.argsort(pair, kind="stable")
        twice = np.flatnonzero(np.diff(pair[order]) == 0)
        if len(twice):
            user, item = divmod(int(pair[order[twice[0]]]), self.items)
            raise DataError(
                f"{self.source}: user {user} has item {item} more than once ({len(twice)} rows repeat another), which "
                "would leak from training into validation. Drop the repeated rows"
            )


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
