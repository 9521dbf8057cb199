"""What ranking models share that hold a row's candidate against the row's history."""

from dataclasses import dataclass

from rtrain.errors import ConfigError, did_you_mean
from rtrain.models.ranking import RankingConfig
from rtrain.schema import IdList, Schema
from rtrain.text import Text


@dataclass(frozen=True, kw_only=True)
class AttendingConfig(RankingConfig):
    """Config of such a model: one candidate feature and one list feature of the same dim."""

    history: str = "history"
    """List feature that is attended over; it is read without pooling."""
    candidate: str = "item_id"
    """Single id feature that the history is held against, usually of the same table."""

    def sequence_features(self, schema: Schema) -> tuple[str, ...]:
        """The history.

        Raises:
            ConfigError: the schema has no such list, or no such candidate.
        """
        kinds = {f.name: isinstance(f, IdList) for f in schema.ids if not isinstance(f, Text)}
        for field, is_list in (("history", True), ("candidate", False)):
            name = getattr(self, field)
            if kinds.get(name) is not is_list:
                near = did_you_mean(name, [n for n, k in kinds.items() if k is is_list])
                wanted = "IdList or IdSequence" if is_list else "Id"
                raise ConfigError(f"model.{field}: {name!r} is not an {wanted} feature of this schema{near}")
        return (self.history,)

    def candidate_at(self, schema: Schema) -> slice:
        """Where the candidate's vector lies among all that come side by side.

        Raises:
            ConfigError: its table and the history's differ in dim.
        """
        dims = self.dims(schema)
        if dims[self.history] != dims[self.candidate]:
            raise ConfigError(
                f"model.tables: {type(self).__name__} compares {self.candidate!r} with {self.history!r}, but their "
                f"tables have dims {dims[self.candidate]} and {dims[self.history]}. Give them the same dim, or the "
                "same table"
            )
        before = 0
        for name, dim in dims.items():
            if name == self.candidate:
                break
            before += dim if name != self.history else 0
        return slice(before, before + dims[self.candidate])
