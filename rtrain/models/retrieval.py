"""What every model that finds items among all has: a table of items, vectors of who asks, an objective of the two."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rtrain.batch import NONE
from rtrain.data.retrieval import RetrievalFacts
from rtrain.data.retrieval_batch import RetrievalBatch
from rtrain.errors import ConfigError
from rtrain.mesh import Mesh, Parallel
from rtrain.models.plan import Piece
from rtrain.models.protocol import Blueprint, Model
from rtrain.nn.tables import Initial, Table
from rtrain.objectives.bpr import BPR
from rtrain.objectives.candidate_loss import CandidateLoss
from rtrain.storage.paths import located


def longest_of(facts: RetrievalFacts) -> dict[str, int]:
    """Of the features that are read as sequences, the longest rows."""
    if facts.longest is None:
        return {"item": 1 + facts.negatives}
    return {"history": facts.longest, "item": facts.longest * (1 + facts.negatives)}


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(Model):
    """Config of such a model."""

    reads: ClassVar[Any] = RetrievalBatch
    exported: ClassVar[str] = "encoders"
    of_histories: ClassVar[bool]
    """Whether it reads users' histories; else pairs of a user and an item."""
    of_graph: ClassVar[bool] = False
    """Whether it reads, beside pairs, the graph of all of them."""
    of_features: ClassVar[bool] = False
    """Whether it reads what is known of users and items beside their ids."""

    dim: int = 64
    """Embedding dim, of items and of who asks."""
    objective: CandidateLoss = BPR()
    """What the model is trained towards, and how vectors are compared; one's own is a subclass, in any file."""
    initial: Initial = "normal"
    """Distribution of the tables' first weights."""
    scale: float = 0.02
    """Bound of the uniform, or standard deviation of the normal distribution."""
    item_vectors: str = ""
    """Parquet file that rows of the table of items begin from, as `TableOptions.vectors`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "item_vectors", located(self.item_vectors))
        if self.dim < 1 or self.dim % 4:
            raise ConfigError(f"model.dim: must be a multiple of 4, which fbgemm reads at once, got {self.dim}")
        if not self.scale > 0:
            raise ConfigError(f"model.scale: must be positive, got {self.scale}")

    def blueprint(self, facts: RetrievalFacts) -> Blueprint:
        """See `rtrain.models.protocol`.

        Raises:
            ConfigError: data of the other kind.
        """
        if (self.of_histories, self.of_graph) != (facts.longest is not None, facts.graph):
            wanted = "Histories" if self.of_histories else "Graph" if self.of_graph else "Pairs"
            raise ConfigError(f"data: {type(self).__name__} is trained on {wanted}. Give the data as rtrain.{wanted}")
        for of in ("user", "item"):
            if getattr(facts, f"{of}_features") and not self.of_features:
                raise ConfigError(
                    f"data.{of}_features: {type(self).__name__} reads ids alone. Leave them out, or use TwoTower"
                )
        self._check_negatives(facts)
        who = () if self.of_histories else (self._table("user", facts.users, "user"),)
        read = ("history", "item") if self.of_histories else ("item",)
        of_user, of_item = facts.user_features, facts.item_features
        lengths = longest_of(facts)
        lengths |= {name: lengths["item"] * facts.texts.get(name, 1) for name in of_item}
        return Blueprint(
            tables=(
                *who,
                self._table("item", facts.items, *read, sequences=read, lengths=lengths),
                *(self._table(name, rows, name) for name, rows in of_user.items()),
                *(self._table(name, rows, name, sequences=(name,), lengths=lengths) for name, rows in of_item.items()),
            ),
            features=(*(() if self.of_histories else ("user",)), *of_user, *read, *of_item),
            pieces=self.pieces(facts),
            objective=self.objective,
            against=self.reasons_against,
            longest=longest_of(facts) | {name: lengths["item"] * most for name, most in facts.lengths.items()},
        )

    def _check_negatives(self, facts: RetrievalFacts) -> None:
        """That the data draw what the objective compares with."""
        of, name = self.objective, type(self.objective).__name__
        if of.draws == (facts.negatives == 0):
            why = "compares with drawn negatives" if of.draws else "takes the batch's own items"
            raise ConfigError(
                f"data.negatives.count: {facts.negatives}, but {name} {why}. Set it to {'1 or more' if of.draws else 0}"
            )
        if of.whole_catalogue != (facts.by == "all"):
            why, do = ("compares with", "all") if of.whole_catalogue else ("wants drawn items, not", "uniform")
            raise ConfigError(f"data.negatives.by: {facts.by!r}, but {name} {why} all items. Set it to {do!r}")
        if of.draws and of.whole_batch and not of.whole_catalogue and not facts.known:
            raise ConfigError(
                f"data.negatives.known: {name} leaves out what a user had, which batches with drawn negatives do not "
                "tell by themselves. Set it to true"
            )
        if facts.negatives and facts.known and not of.whole_batch:
            raise ConfigError(
                f"data.negatives.known: true, but {name} compares with drawn negatives alone, which a user never had. "
                "Set it to false"
            )
        power = facts.power if facts.by == "popularity" else 0.0
        if of.powers - {power}:
            corrected = ", ".join(f"{x:g}" for x in sorted(of.powers))
            raise ConfigError(
                f"model.objective.correction: {corrected}, but negatives are drawn by the popularity to the power of "
                f"{power:g} (data.negatives). Make both the same"
            )

    def reasons_against(self, parallel: Parallel, mesh: Mesh) -> Iterator[str]:
        """What speaks against a layout, one line each."""
        name = type(self.objective).__name__
        for axis, degree in (("tensor", parallel.tensor), ("pipeline", parallel.pipeline)):
            if degree > 1 and self.objective.whole_catalogue:
                yield (
                    f"parallel.{axis}: {degree}, but {name} deals all items to a batch's positions, another number "
                    "in each step. Set it to 1, or use an objective with drawn negatives"
                )
        if parallel.microbatches > 1 and self.objective.whole_batch:
            yield (
                f"parallel.microbatches: {parallel.microbatches}, but {name} compares within the whole batch. "
                "Set it to 1, or use an objective with drawn negatives"
            )

    def _table(
        self, name: str, rows: int, *features: str, sequences: tuple[str, ...] = (), lengths: Mapping[str, int] = NONE
    ) -> Table:
        return Table(
            name=name, rows=rows, dim=self.dim, features=features, sequences=sequences,
            means=features, initial=self.initial, scale=self.scale,
            mean_lengths=tuple(float(lengths.get(f, 1)) for f in features),
            vectors=self.item_vectors if name == "item" else "",
        )  # fmt: skip

    @abstractmethod
    def pieces(self, facts: RetrievalFacts) -> tuple[Piece, ...]:
        """The dense part, whose last piece gives queries [B, T, E] and candidates [B, T, 1 + K, E].

        Of pairs it takes `VECTORS`, the user's, of histories `sequence("history")`, of both `sequence("item")`.
        """
