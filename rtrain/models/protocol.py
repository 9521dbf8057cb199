"""What a model declares: all that the trainer asks of one, whatever its kind."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from rtrain.mesh import Dealt, Mesh, Parallel
from rtrain.models.plan import Piece
from rtrain.nn.tables import Table
from rtrain.objectives.ranks import Ranks


class Tally(Protocol):
    """What metrics take of the rows of a split, gathered batch by batch on one rank."""

    def add(self, found: Any, batch: Any) -> None:
        """Another batch: its outputs, or the sum of its losses; a collective over data ranks."""

    def scored(self) -> tuple[Mapping[str, Any], int]:
        """Prefix of metrics' names (empty for the first task) -> what they take; and how many are no numbers."""


class Objective(Protocol):
    """What a model is trained towards."""

    gives: ClassVar[Any]
    """What the metrics are given; those that take another are refused."""
    tallies: ClassVar[str]
    """What the tally takes of a batch: its "outputs", or the sum of its "losses" where outputs are too many to keep."""

    def loss(self, outputs: Any, target: Tensor, ranks: Ranks) -> Tensor:
        """Sum over this rank's part of the batch, float32; the mean is over the global batch's `loss_units`."""

    @property
    def link(self) -> Callable[[Tensor], Tensor] | None:
        """Outputs -> the number that is served for each row; none: there is no such number."""

    def tally(self, ranks: Ranks, metrics: Sequence[Any]) -> Tally:
        """For the scores of a split, which the metrics take."""


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """A model for one data set, as the replica builds it: tables are looked up, pieces go through their vectors."""

    tables: tuple[Table, ...] = ()
    features: tuple[str, ...] = ()
    """Those that the tables are looked up for, in the order of their vectors side by side."""
    pieces: tuple[Piece, ...]
    """Dense parts in the order of a pipeline, by whose `takes` a vector is carried to where it is used."""
    objective: Objective
    dealt: Dealt = "rows"
    """What tensor ranks share where no weight is divided between them; with tables it is rows."""
    longest: Mapping[str, int] = field(default_factory=dict)
    """Of a feature that is read as a sequence, the length that tensor and pipeline ranks pad it to; 0: as a batch deals
    it to its rows, of a model that refuses such ranks."""
    against: Callable[[Parallel, Mesh], Iterable[str]] = lambda parallel, mesh: ()
    """What speaks against a layout that only the model knows, one line each with what to change."""


@runtime_checkable
class Model(Protocol):
    """A frozen config; a user's own file may hold one."""

    reads: ClassVar[Any]
    """Kind of batch; data that give another are refused."""
    served: ClassVar[bool] = False
    """Whether `handoff.serve_check` can compare what its export answers."""
    exported: ClassVar[str] = ""
    """The form of its export, of `rtrain.export.formats`; empty: there is none."""

    def blueprint(self, facts: Any) -> Blueprint:
        """The model for data of these `facts`: of interactions the schema, of tokens `TokenFacts`.

        Raises:
            ConfigError: it cannot read such data.
        """

    def check(self, data: Any) -> None:
        """Look at data that have been opened; nothing by default.

        Raises:
            ConfigError: it cannot read them.
        """
        return None
