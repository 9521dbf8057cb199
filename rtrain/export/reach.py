"""How large the numbers of a request may be: a model's sums of those close to float32's end are no numbers.

Shape legend: B rows, K numbers that a row keeps, P columns that they become.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rtrain.batch import Batch, Jagged
from rtrain.data.blank import blank_rows
from rtrain.encodings import LARGEST, widened
from rtrain.schema import Dense, Schema
from rtrain.vector import Embedding

PLAUSIBLE = 6
"""Power of ten of numbers that data may have: what overflows sooner is refused row by row, for others would be too."""
ROWS, IDS = 64, 65_536
"""Rows that are computed at once; fewer where their lists are so long that these would have more ids."""


def largest_of(schema: Schema, computed: Callable[[Batch], Tensor]) -> float:
    """The largest number that requests may have of what the model computes with, by its size once it is scaled.

    A power of ten, of whose ten times rows of any signs and ids were seen to give numbers. It is found out and not
    proven: a row within it may still give none. Of a model that gives none of plausible ones it is float32's end.

    Args:
        schema: what the model reads.
        computed: a batch -> what the model gives, [B] or [B, labels].
    """
    if not (schema.weighted or any(isinstance(feature, Dense | Embedding) for feature in schema.dense)):
        return LARGEST
    rows = min(ROWS, max(4, IDS // max(1, sum(blank_rows(schema, 1, 1).ids.per_key))))
    draw, blank = np.random.default_rng(0), blank_rows(schema, rows, rows)
    ids = _drawn(schema, blank.ids, draw)
    signs_BK = draw.choice([-1, 0, 1], (rows, len(schema.kept_widths)))
    signs_BK[:2] = [[1], [-1]]

    @torch.inference_mode()
    def gives_numbers(size: float) -> bool:
        weights = ids.weights
        if weights is not None:
            weights = weights.where(weights == 1, weights.sign() * size)
        batch = replace(blank, dense=_dense(schema, signs_BK, size), ids=replace(ids, weights=weights))
        return bool(torch.isfinite(computed(batch)).all())

    try:
        if gives_numbers(LARGEST) or not gives_numbers(10.0**PLAUSIBLE):
            return LARGEST
        does, does_not = PLAUSIBLE, 39  # 1e38 is the last that float32 has
        while does_not - does > 1:
            middle = (does + does_not) // 2
            does, does_not = (middle, does_not) if gives_numbers(10.0**middle) else (does, middle)
    except Exception:  # a model of one's own may raise anything, and says it where it is asked
        return LARGEST
    return 10.0 ** max(does - 1, PLAUSIBLE)


def _drawn(schema: Schema, blank: Jagged, draw: np.random.Generator) -> Jagged:
    """Any ids, and of each that has a weight its sign, times 2."""
    values, weights, start = blank.values.clone(), blank.weights, 0
    weights = None if weights is None else weights.clone()
    weighted = {feature.name for feature in schema.weighted}
    for feature, count in zip(schema.ids, blank.per_key, strict=True):
        mine = slice(start, start := start + count)
        values[mine] = torch.from_numpy(draw.integers(0, feature.table_rows, count))
        if weights is not None and feature.name in weighted:
            weights[mine] = torch.from_numpy(draw.choice([-2.0, 2.0], count)).float()
    return replace(blank, values=values, weights=weights)


def _dense(schema: Schema, signs_BK: np.ndarray, size: float) -> Tensor:
    """float32 [B, P] of numbers as large as this, but for what no value becomes as large as."""
    kept_BK = np.zeros(signs_BK.shape)
    at = 0
    for feature in schema.dense:
        mine = slice(at, at := at + len(feature.kept))
        low, high = -size, size
        if isinstance(feature, Dense):
            low, high = feature.scaled(np.array(feature.reach(size))).clip(-size, size)
        if isinstance(feature, Dense | Embedding):
            kept_BK[:, mine] = np.where(signs_BK[:, mine] > 0, high, np.where(signs_BK[:, mine] < 0, low, 0))
    return torch.from_numpy(widened(kept_BK.astype(np.float32), schema.kept_widths))
