"""What is known of the users of a retrieval model, by which its metrics are told apart: a slice is of users.

Shape legend: U users of the data, B users of a split.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rtrain.data import sources
from rtrain.data.coded import Coded, coded
from rtrain.data.parquet import ParquetRows
from rtrain.data.side import SideFeatures
from rtrain.data.split import Split
from rtrain.errors import ConfigError, did_you_mean
from rtrain.schema import Id

Ids = NDArray[np.int64]
HISTORY = "history"
"""Name of the number of a user's interactions that train."""


class OfUsers:
    """The number of each user's interactions, and the columns of the users' table where there is one."""

    def __init__(self, side: SideFeatures | None, users: Ids, trained: Ids):
        """`side`: the users' table; `users`: rising, [U]; `trained`: how many interactions of each train, [U]."""
        self._side, self._users = side, users
        self._read: dict[str, pa.ChunkedArray] = {HISTORY: pa.chunked_array([pa.array(trained)])}
        self._coded: dict[tuple[Split, str], Coded] = {}
        self._ids = {f.name for f in side.features if isinstance(f, Id)} | {side.key} if side else set[str]()

    def refuse(self, names: Sequence[str], asker: str) -> None:
        """As `Samples.refuse_columns`; reads the columns, for a user may have several values in one.

        Raises:
            ConfigError: no such column, one of lists, one not of users, or one beside `HISTORY` that is called so too.
        """
        stored = self._stored()
        there = stored.schema.names if stored else []
        known = [HISTORY, *(name for name in there if name != HISTORY and not _holds_lists(stored, name))]
        for name in names:
            if name not in (HISTORY, *there):
                near = did_you_mean(name, known) or f". Those are {', '.join(known)}"
                raise ConfigError(f"{asker}: nothing that is known of users is called {name!r}{near}")
            if name == HISTORY and name in there and not _holds_lists(stored, name):
                raise ConfigError(
                    f"{asker}: {name!r} is the number of a user's interactions, and a column of "
                    "data.user_features.source too. Rename the column"
                )
            if name not in known:  # one of lists
                raise ConfigError(f"{asker}: column {name!r} has lists, not one value a user. Name another")
            self._column(name, asker)

    def coded(self, split: Split, name: str, places: Ids) -> Coded:
        """What the users at these places have, those of the split, [B]; kept, for every evaluation asks."""
        if (split, name) not in self._coded:
            column = self._column(name, "evaluation.slices").take(pa.array(places))
            self._coded[split, name] = coded(pa.table({name: column}), ids=self._ids)
        return self._coded[split, name]

    def _stored(self) -> ParquetRows | None:
        if self._side is None:
            return None
        source = self._side.source
        return ParquetRows(str(sources.get(source)) if source in sources.NAMES else source)

    def _column(self, name: str, asker: str) -> pa.ChunkedArray:
        """Each user's value, [U]; null where the table has no row of the user."""
        if name in self._read:
            return self._read[name]
        stored = self._stored()
        assert stored is not None and self._side is not None, "refused before"
        table = stored.read(0, stored.rows, list({self._side.key: None, name: None}))
        keys, first, of = np.unique(table[self._side.key].to_numpy(), return_index=True, return_inverse=True)
        codes = coded(table.select([name])).codes
        differ = codes != codes[first[of]]
        if differ.any():
            row = int(differ.argmax())
            values = [table[name][at].as_py() for at in (int(first[of[row]]), row)]
            raise ConfigError(
                f"{asker}: {name!r} is not of users: {self._side.key} {keys[of[row]]} of {stored.uri} has {values[0]} "
                f"in one row and {values[1]} in another. Name a column with one value a user"
            )
        at = np.minimum(np.searchsorted(keys, self._users), len(keys) - 1)
        rows = pa.array(first[at], mask=keys[at] != self._users)
        self._read[name] = table[name].take(rows)
        return self._read[name]


def _holds_lists(stored: ParquetRows | None, name: str) -> bool:
    return stored is not None and pa.types.is_nested(stored.schema.field(name).type)
