"""What is offered to those of whom a retrieval model knows nothing."""

from functools import cached_property
from typing import Literal

import numpy as np

from rtrain.data.retrieval_batch import Ids

Unknown = Literal["refuse", "popular"]
"""What becomes of users and items that are not in the data: an error that names the first, or see `recommend`."""


class Popular:
    """A catalogue by how often training had its items."""

    def __init__(self, often: Ids):
        """`often`: of each item, [I]."""
        self._often = often

    @cached_property
    def _order(self) -> Ids:
        """Places in the catalogue, the most frequent first, of equals the first."""
        return np.argsort(-self._often, kind="stable")

    def best(self, k: int, hidden: Ids) -> list[tuple[int, float]]:
        """Up to k places that are not hidden, each with the share of all that it was, most first."""
        first = self._order[: k + len(hidden)]
        offered = first[~np.isin(first, hidden)][:k]
        shares = self._often[offered] / max(self._often.sum(), 1)
        return list(zip(offered.tolist(), shares.tolist(), strict=True))
