"""What data declare: all that a run asks of them before they are opened, whatever their kind."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from rtrain.batch import NONE, Jagged
from rtrain.data.samples import Samples


class NotCounted(Exception):
    """Why it cannot be known how much a step keeps, in a few words; and the field that would tell, if one would."""


class AnyBatch(Protocol):
    """A rank's share of a global batch: all that the replica and the loop ask of one, whatever its kind.

    `batch.Batch`, `data.tokens.TokenBatch` and `data.retrieval_batch.RetrievalBatch` are some. A dataclass, so that
    `batch.each` finds its tensors. Shape legend: B rows.
    """

    @property
    def rows(self) -> int:
        """B, padding included."""

    @property
    def row(self) -> Tensor:
        """int64 [B]: each row's number in the data, by which the ledger counts it; -1 of one that only pads."""

    @property
    def global_rows(self) -> int:
        """Rows of the global batch, over all ranks and without padding."""

    def loss_units(self, summed: Callable[[float], float]) -> float:
        """What the loss of the global batch is a mean over: its rows, tokens, or the sum of its weights.

        `summed`: of a number of these rows the sum over all ranks' rows, for what no rank knows alone; a collective.
        """

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        """By name what a piece may take beside looked-up vectors, each with B rows."""

    @property
    def target(self) -> Tensor:
        """What the objective holds outputs against, with B rows: one tensor, which microbatches cut by rows."""

    def padded(self, rows: int, longest: Mapping[str, int] = NONE) -> Self:
        """With rows at its end that count for nothing, up to `rows`; sequences up to their `longest`."""

    def to(self, device: torch.device) -> Self:
        """On another device."""


class IdBatch(AnyBatch, Protocol):
    """A batch for models with tables."""

    @property
    def ids(self) -> Jagged:
        """What is looked up, of B rows."""


@runtime_checkable
class Data(Protocol):
    """A frozen config; a user's own file may hold one."""

    gives: ClassVar[Any]
    """Kind of batch, an `AnyBatch`; models that read another are refused."""
    source: str
    """Where they lie: a name that `open` knows, a path, or a URI."""
    train_rows: int | None
    """Samples to train on, the last before validation; none: all."""

    @property
    def group(self) -> str:
        """Whom rows are ranked for; empty where there is nobody."""
        return ""

    @property
    def columns(self) -> tuple[str, ...]:
        """Those by whose values the metrics of the test split may be told apart; none: data without columns."""
        return ()

    @property
    def slices(self) -> tuple[str, ...] | None:
        """What `evaluation.slices` may name; none: the open data tell (`Samples.refuse_columns`)."""
        return self.columns

    @property
    def metric_prefixes(self) -> tuple[str, ...]:
        """Of the names of each label's metrics."""
        return ("",)

    @property
    def facts(self) -> Any:
        """What a model may ask of the data before they are opened."""

    def blank(self, rows: int, global_rows: int) -> AnyBatch:
        """A batch of `rows` rows as large as can be, of a global batch of `global_rows`, of no content.

        Raises:
            NotCounted: only open data tell how large that is.
        """
        raise NotCounted("how large batches are, only open data tell")

    def check_source(self) -> None:
        """Look whether a local source is there; nothing is fetched.

        Raises:
            DataError: it is not.
        """
        return None

    def open(self) -> Samples[Any]:
        """The samples, checked and split.

        Raises:
            DataError: data that is missing, damaged, or does not fit.
        """

    def absolute(self) -> Self:
        """The same data for a process in another working directory."""
        if "://" in self.source or not os.path.exists(self.source):
            return self
        return replace(self, source=os.path.abspath(self.source))  # type: ignore[type-var]
