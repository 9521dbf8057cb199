"""Data that is open for reading: numbered samples in three splits, read from any position on."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Generic, get_args

from rtrain.data.baseline import Baseline
from rtrain.data.coded import Coded
from rtrain.data.cursor import Cursor
from rtrain.data.order import Order, Window
from rtrain.data.prefetch import Prefetch
from rtrain.data.reader import B, Reader, Ready, Rows, as_it_is, batches
from rtrain.data.split import Ranges, Split
from rtrain.errors import ConfigError

SPLITS: tuple[Split, ...] = get_args(Split)


class Samples(ABC, Generic[B]):
    """Batches of type B of any split, the same global ones at any number of ranks.

    A sample's number counts over the whole data set, all splits together, in the order in which it is stored.
    """

    split_field: ClassVar[str]
    """Where the config says how large each split is."""
    inputs: tuple[str, ...] | None = None
    """Names of its batches' `inputs`, what a model's pieces may take beside looked-up vectors; none: not told here."""

    def __init__(self, ranges: Ranges, fingerprint: str, prefetch: int):
        self.ranges = ranges
        self.fingerprint = fingerprint
        """16 hex digits: a cursor of another fingerprint counts other samples, or in another order."""
        self._prefetch = prefetch

    def rows(self, split: Split) -> int:
        """Number of samples in the split."""
        start, stop = self._range(split)
        return stop - start

    def numbers(self, split: Split) -> range:
        """The numbers (a batch's `row`) of the split's samples."""
        return range(*self._range(split))

    def reader(
        self,
        split: Split = "train",
        *,
        global_batch: int,
        seed: int,
        rank: int,
        world_size: int,
        cursor: Cursor | None = None,
        ready: Ready = as_it_is,
    ) -> Reader[B]:
        """Shuffled batches for one data rank, epoch after epoch, from `cursor` (none: the beginning) on.

        `ready` gives what is handed out of each.

        Raises:
            ConfigError: a global batch that not every rank would get a row of.
            DataError: a cursor of other data.
        """
        return Reader(
            self._load,
            self._order(split, seed),
            global_batch=global_batch,
            rank=rank,
            world_size=world_size,
            cursor=cursor or Cursor(),
            prefetch=self._prefetch,
            ready=ready,
        )

    def scan(
        self, split: Split, *, global_batch: int, rank: int, world_size: int, ready: Ready = as_it_is
    ) -> Iterator[B]:
        """The split once, in its order; every rank gets the same number of batches. `ready` as for `reader`.

        Raises:
            ConfigError: a global batch that not every rank would get a row of.
        """
        order = self._order(split, None)
        order.check(global_batch, rank, world_size)
        shares = batches(
            self._load,
            order,
            global_batch=global_batch,
            rank=rank,
            world_size=world_size,
            cursor=Cursor(),
            epochs=1,
            ready=ready,
        )
        return self._ahead(batch for batch, _ in shares)

    def _ahead(self, made: Iterator[B]) -> Iterator[B]:
        """The same, of which a thread keeps the next ones ready."""
        return Prefetch(made, self._prefetch) if self._prefetch else made

    def written_since(self, seconds: float) -> list[str]:
        """Names of its files that were written to after a moment, since 1970, as far as that is known."""
        return []

    def let_go(self, split: Split) -> None:
        """Give back the memory of what is kept of a split between its epochs; who asks for it reads it again."""

    def baselines(self, metrics: Sequence[Any], boosting_rows: int) -> tuple[Baseline, ...]:
        """What a model is held against, what it must beat at least first; none where there is nothing.

        `metrics`: that will be asked of it; `boosting_rows`: as `Evaluation.boosting_rows`.
        """
        return ()

    def remarks(self, boosting_rows: int, ranks: int = 1) -> tuple[str, ...]:
        """What a person should know of these data before they are trained on, a line each.

        `boosting_rows`: as `Evaluation.boosting_rows`; `ranks`: that read shares of their own.
        """
        return ()

    def refuse_rows(self) -> None:
        """Refuse rows of any split that cannot be used, as far as that is cheaply seen, and splits that tell of each
        other; asked once a run, before anything is trained.

        Raises:
            DataError: such a row, one that two splits have, or one that trains and is newer than one that tests.
        """

    def refuse_metrics(self, metrics: Sequence[Any]) -> None:
        """Refuse metrics that these data have too little for.

        Raises:
            ConfigError: more drawn candidates than there are items.
        """

    def refuse_columns(self, names: Sequence[str], asker: str) -> None:
        """Refuse columns that rows cannot be told apart by; `asker`: the setting that names them.

        Raises:
            ConfigError: there are no such columns, or one holds lists.
        """
        raise ConfigError(f"{asker}: these data have no columns, got {', '.join(names)}. Leave it out")

    def told(self, scored: Any) -> Any:
        """The rows that a model scored, with what the data know of their items; as they are where it is nothing."""
        return scored

    def coded(self, split: Split, names: tuple[str, ...]) -> Coded:
        """What the split's rows have in these columns, in the order of their numbers, whole on every rank."""
        raise NotImplementedError("asked only after refuse_columns")

    def _range(self, split: Split) -> tuple[int, int]:
        if split not in SPLITS:
            raise ConfigError(f"there is no split {split!r}; the splits are {', '.join(SPLITS)}")
        return self.ranges[split]

    @abstractmethod
    def _order(self, split: Split, seed: int | None) -> Order:
        """Which samples come when; without a seed as they are stored."""

    @abstractmethod
    def _load(self, window: Window) -> Rows[B]:
        """A window's samples, encoded."""
