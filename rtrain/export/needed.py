"""Which rows of its tables a batch needs, and the batch of those rows alone: for tables that lie elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rtrain.nn.gathered import IDS, Gathered, ids_of, scale_of, weights_of
from rtrain.nn.tables import Table


@dataclass(frozen=True)
class Needed:
    """Of one batch."""

    rows: Mapping[str, Tensor]
    """By name of all that is a table's, as `Gathered.of_tables`: int64, rising, each once. Tables that share a feature
    have the same, so that a shorter one may be asked for a row that it has not, and that nobody looks at."""
    named: Mapping[str, Tensor]
    """What `Gathered` takes beside tables; its ids are places among these rows."""


def needed(gathered: Gathered, named: Mapping[str, Tensor]) -> Needed:
    """Of what `Gathered.asked` gave."""
    rows, places = dict[str, Tensor](), dict[str, Tensor]()
    for tables in _together(gathered.tables):
        features = [f for f in gathered.features if any(f in table.features for table in tables)]
        ids = [named[ids_of(f)] if f in gathered.lists else named[IDS][gathered.ones.index(f)] for f in features]
        found, where = torch.cat([x.flatten() for x in ids]).unique(return_inverse=True)
        parts = where.split([x.numel() for x in ids])
        places |= {f: part.view(x.shape) for f, part, x in zip(features, parts, ids, strict=True)}
        for table in tables:
            rows |= {name: found for name in (weights_of(table), scale_of(table)) if name in gathered.of_tables}
    own = {ids_of(f): places[f] for f in gathered.lists}
    if gathered.ones:
        own[IDS] = torch.stack([places[f] for f in gathered.ones])
    return Needed(rows, {**named, **own})


def _together(tables: Sequence[Table]) -> list[list[Table]]:
    """Tables that have a feature in common, or have one in common with one of these."""
    groups = list[list[Table]]()
    for table in tables:
        meets = [group for group in groups if any(set(table.features) & set(other.features) for other in group)]
        apart = [group for group in groups if not any(group is other for other in meets)]
        groups = [*apart, [*(other for group in meets for other in group), table]]
    return groups
