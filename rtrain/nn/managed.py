"""Which row of its table a value has, where tables are managed: a look-up on whatever device the ids lie."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from rtrain.batch import Jagged
from rtrain.nn.tables import Table


class ManagedIds(nn.Module):
    """Of each managed table the values of its rows, as 64 bits (`rtrain.data.hashed.into_keys`); 0: nobody's.

    Row 0 is that of all values that have none. Rows are given from 1 on, and none is ever without a value again.
    """

    def __init__(self, tables: tuple[Table, ...], device: torch.device | str = "cpu"):
        """`tables`: all of a model; those of first-order weights have the rows that the tables beside them have."""
        super().__init__()
        self.features = {t.name: t.features for t in tables if t.managed and not t.beside}
        for table in tables:
            if table.name in self.features:
                self.register_buffer(self.buffer(table.name), torch.zeros(table.rows, dtype=torch.int64, device=device))
        self._sorted: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    @staticmethod
    def buffer(table: str) -> str:
        """Name of the tensor of a table's values, int64 [rows]."""
        return f"keys_{table}"

    def keys_of(self, table: str) -> Tensor:
        """int64 [rows]; `settle` after changing it."""
        return self.get_buffer(self.buffer(table))

    def settle(self) -> None:
        """The values of some rows are others now."""
        self._sorted.clear()

    def forward(self, ids: Jagged) -> Jagged:
        """The same with rows in place of the values of managed features."""
        parts = list(ids.values.split(list(ids.per_key)))
        for table, features in self.features.items():
            keys, rows = self._in_order(table)
            for at in map(ids.keys.index, features):
                found = torch.searchsorted(keys, parts[at]).clamp_(max=len(keys) - 1)
                parts[at] = torch.where(keys[found] == parts[at], rows[found], 0)
        return replace(ids, values=torch.cat(parts))

    def _in_order(self, table: str) -> tuple[Tensor, Tensor]:
        """Values in rising order and the row of each; row 0 comes first of those that are nobody's."""
        of = self.keys_of(table)
        kept = self._sorted.get(table)
        if kept is None or kept[0] is not of:  # weights of an export are put in place of those of before
            kept = self._sorted[table] = (of, *torch.sort(of, stable=True))
        return kept[1:]
