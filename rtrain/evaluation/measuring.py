"""Metrics of the rows of all ranks, the same on every rank; no rank has the rows of all.

Rows are dealt out once for all metrics that are parted alike (`rtrain.metrics.parted`) and for all slices; each rank
measures its part, and what it comes to is added over ranks. States of metrics that know `partial` and `value` alone
are gathered as they are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from rtrain.evaluation.columns import Columns, Slice, groups_of, numbered, partial_of
from rtrain.evaluation.dealing import by_group, by_score
from rtrain.evaluation.exchange import everyones, exchanged
from rtrain.metrics.curves import Count, ScorePart
from rtrain.metrics.groups import GroupPart
from rtrain.metrics.parted import Dealing, InParts, as_parted
from rtrain.metrics.state import Metric, Partial, group_columns

P = TypeVar("P", GroupPart, ScorePart)
Deal = tuple[Dealing, tuple[str, ...]]
"""What keeps rows together, and the columns of the groups where these are not the schema's."""


def measured(
    of: Any, metrics: Sequence[Metric], columns: Columns | None = None, slices: Sequence[Slice] = ()
) -> dict[str, float]:
    """`auc`, and `auc[gender=F]` of each slice: the value over all ranks' rows; a collective.

    `of`: this rank's rows of one label, or what another kind of model gives.
    """
    gathered = [metric for metric in metrics if as_parted(metric) is None]
    deals: dict[Deal, dict[str, InParts]] = {}
    for metric in metrics:
        parted = as_parted(metric)
        if parted is not None:
            deals.setdefault((parted.dealt_by, group_columns(metric)), {})[metric.name] = parted

    states = {metric.name: partial_of(metric, of, columns) for metric in gathered}
    for one in slices if gathered else ():
        assert columns is not None
        part = one.of(of, columns)
        states |= {f"{metric.name}{one.name}": partial_of(metric, part, columns) for metric in gathered}
    numbers = {f"slices of {name}": row for name, row in numbered(slices, of, columns).items()} if columns else {}
    for (dealing, by), its in deals.items():
        for name, dealt in _parts(dealing, of, groups_of(by, of, columns), numbers, slices):
            states |= {f"{metric}{name}": parted.of_part(dealt) for metric, parted in its.items()}
    merged = over_ranks(states)

    values = {}
    for name in ("", *(one.name for one in slices)):
        for metric in metrics:
            parted, state = as_parted(metric), merged[f"{metric.name}{name}"]
            values[f"{metric.name}{name}"] = metric.value(state) if parted is None else parted.of_parts(state)
    return values


def over_ranks(states: Mapping[str, Partial]) -> dict[str, Partial]:
    """By name, the states of all ranks added in their order; a collective."""
    first, *others = everyones(dict(states))
    for other in others:
        first = {name: state + other[name] for name, state in first.items()}
    return first


def _parts(
    dealing: Dealing,
    of: Any,
    groups: NDArray[np.int64],
    numbers: Mapping[str, NDArray[np.int64]],
    slices: Sequence[Slice],
) -> Iterator[tuple[str, GroupPart | ScorePart]]:
    """This rank's part of all rows, and of those of each slice, by what is put behind the metrics' names."""
    rows = {"logits": of.logits, "labels": of.labels, **numbers}
    if dealing == "groups":
        rows = exchanged({**rows, "groups": groups}, by_group(groups))
        yield from _of_slices(GroupPart.of(rows), rows, slices)
        return
    rows = exchanged(rows, by_score(of.logits))
    parts = dict(_of_slices(ScorePart.of(rows), rows, slices))
    counts = everyones([part.count for part in parts.values()])
    for part_number, (name, part) in enumerate(parts.items()):
        of_ranks = [of_rank[part_number] for of_rank in counts]
        yield name, replace(part, ahead=Count.sum(of_ranks[: dist.get_rank()]), total=Count.sum(of_ranks))


def _of_slices(whole: P, rows: Mapping[str, NDArray[Any]], slices: Sequence[Slice]) -> Iterator[tuple[str, P]]:
    yield "", whole
    for number, one in enumerate(slices):
        yield one.name, whole.where(rows[f"slices of {one.column}"] == number)
