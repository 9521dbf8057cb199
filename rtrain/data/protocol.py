"""What data declare: all that a run asks of them before they are opened, whatever their kind."""

import os
from dataclasses import replace
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from rtrain.data.samples import Samples


@runtime_checkable
class Data(Protocol):
    """A frozen config; a user's own file may hold one."""

    gives: ClassVar[Any]
    """Kind of batch; models that read another are refused."""
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
    def metric_prefixes(self) -> tuple[str, ...]:
        """Of the names of each label's metrics."""
        return ("",)

    @property
    def facts(self) -> Any:
        """What a model may ask of the data before they are opened."""

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
