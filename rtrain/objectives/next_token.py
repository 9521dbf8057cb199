"""The next token of every position.

Shape legend: B rows, T tokens, V vocabulary (of a tensor rank's share), N positions.
"""

from typing import Protocol

from torch import Tensor

IGNORED = -100
"""A target that counts for nothing; torch's own default."""


class VocabularyRanks(Protocol):
    """The ranks that share a vocabulary, of which each has the logits of its own tokens."""

    def cross_entropy(self, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        """Sum of the positions' cross-entropies in nats, float32; targets of `IGNORED` count for nothing."""


class NextToken:
    """Cross-entropy of each position's target against the logits of the vocabulary."""

    @staticmethod
    def loss(logits_BTV: Tensor, targets_BT: Tensor, ranks: VocabularyRanks) -> Tensor:
        """Sum over the batch's positions; the mean is over its `loss_units`."""
        return ranks.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
