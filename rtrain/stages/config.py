"""The recipe of two stages."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rtrain.errors import ConfigError
from rtrain.export.artifact import is_retrieval
from rtrain.stages.features import Features, NoFeatures
from rtrain.stages.filters import Filter
from rtrain.storage.paths import located


@dataclass(frozen=True, kw_only=True)
class TwoStages:
    """A retrieval model's candidates, ordered by a ranking model, less what filters take away.

    The retrieval model finds `candidates` items of the whole catalogue; the ranking model scores a row of each: the
    names of user and item, what the request says, what `features` know of item and user, and `defaults`, of each column
    the first that has it.
    """

    retriever: str = ""
    """The finished run of a model that finds items, or its export."""
    ranker: str = ""
    """The finished run of a model that ranks rows, or its export."""
    candidates: int = 200
    """Items that are ranked for each who asks, and the most that can be asked for."""
    user: str = "user"
    """The ranking model's feature that is who asks."""
    item: str = "item"
    """The ranking model's feature that is what is offered."""
    history: str = ""
    """The ranking model's feature that is the items that were had, for a retrieval model of histories; empty: none."""
    label: str = ""
    """What is ordered by, of a ranking model with several labels; empty: the first."""
    features: Features = field(default_factory=NoFeatures)
    timeout_ms: float = 50.0
    """Milliseconds that the store has for an answer; then all are the defaults, and the answer says so."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Column -> value where nothing else is known; without one a null, as the model's `missing` says."""
    filters: tuple[Filter, ...] = ()
    """One after the other."""

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ConfigError(f"TwoStages.candidates: must be at least 1, got {self.candidates}")
        if not self.timeout_ms > 0:
            raise ConfigError(f"TwoStages.timeout_ms: must be above 0, got {self.timeout_ms}")
        if not isinstance(self.features, Features):
            raise ConfigError(
                f"TwoStages.features: a store, as SQLite(path='features.db') or Redis(url='redis://...'), got "
                f"{self.features!r}"
            )
        if not isinstance(self.filters, tuple) or not all(isinstance(rule, Filter) for rule in self.filters):
            raise ConfigError(f"TwoStages.filters: a tuple of them, as (Without(...),), got {self.filters!r}")
        for name in ("retriever", "ranker"):  # replicas work in another folder
            if getattr(self, name):
                object.__setattr__(self, name, located(getattr(self, name)))

    def having(self, export: str) -> "TwoStages":
        """With an export in the place of its kind.

        Raises:
            ConfigError: the one of the other kind is not said.
        """
        finds = is_retrieval(export)
        if not (self.ranker if finds else self.retriever):
            is_one, lacks = ("retriever", "ranker") if finds else ("ranker", "retriever")
            raise ConfigError(f"TwoStages.{lacks}: {export} is the {is_one} of two stages, and no {lacks} is said")
        return replace(self, retriever=export) if finds else replace(self, ranker=export)
