"""What a program of an export is given of a batch: the tables, as they are stored, and the ids as it wants them."""

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from rtrain.batch import Batch
from rtrain.export.needed import Needed, needed
from rtrain.export.program import Whole
from rtrain.models.protocol import Blueprint
from rtrain.models.unsharded import Unsharded
from rtrain.nn.gathered import Gathered, scale_of
from rtrain.schema import Many, Schema


class Lookup:
    """Of one export."""

    def __init__(self, model: Unsharded, blueprint: Blueprint, schema: Schema, weights: Mapping[str, Tensor]):
        """`weights`: by the names that `model` has them by."""
        lists = [feature.name for feature in schema.ids if isinstance(feature, Many)]
        scaled = [table.name for table in blueprint.tables if scale_of(table) in weights]
        self.gathered = Gathered(blueprint.tables, blueprint.features, lists, scaled)
        self.tables = {name: weights[name] for name in self.gathered.of_tables}
        self._model = model

    @cached_property
    def whole(self) -> Whole:
        """The model, of what `given` and `tables` give."""
        return Whole(self.gathered, self._model.dense())

    def __call__(self, batch: Batch) -> Tensor:
        """Outputs, by torch."""
        named = {**self.tables, **self.given(batch)}
        outputs: Tensor = self.whole(*(named[name] for name in self.whole.takes))
        return outputs

    def there(self, batch: Batch, device: torch.device) -> Tensor:
        """The same, of rows that are looked up here, where the tables lie, and a dense part that computes there."""
        named = self.given(batch)
        named |= self.gathered({**self.tables, **named})
        dense = self.whole.dense
        outputs: Tensor = dense(*(_moved(named[name], device) for name in dense.takes))
        return outputs

    def needed(self, batch: Batch) -> Needed:
        """What a batch needs of tables that lie elsewhere."""
        return needed(self.gathered, self.given(batch))

    def of_rows(self, wanted: Needed, rows: Mapping[str, Tensor], device: torch.device) -> Tensor:
        """Outputs, of the rows that were needed, as those who have the tables said them; computed there."""
        named = {**wanted.named, **rows}
        outputs: Tensor = self.whole(*(_moved(named[name], device) for name in self.whole.takes))
        return outputs

    def given(self, batch: Batch) -> dict[str, Tensor]:
        """By name all but the tables."""
        of = self._model.tables
        ids = batch.ids if of.managed is None else of.managed(batch.ids)
        return {**batch.inputs, **self.gathered.asked(ids, of.shares(ids))}


def _moved(x: Tensor, device: torch.device) -> Tensor:
    """On a GPU from pinned memory, so that nobody waits for the copy."""
    return x if x.device == device else x.pin_memory().to(device, non_blocking=True)
