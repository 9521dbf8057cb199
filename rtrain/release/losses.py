"""How far apart two language models are on the same tokens: a paired bootstrap of what each row cost them."""

import numpy as np
from numpy.typing import NDArray

from rtrain.errors import RtrainError, one_line
from rtrain.metrics.language import Perplexity, TokenLoss
from rtrain.metrics.paired import mean_interval
from rtrain.release.finished import Finished

MOST_EXPONENT = 709.0
"""Of the largest float."""


def interval_of_losses(name: str, champion: Finished, candidate: Finished) -> tuple[tuple[float, float] | None, str]:
    """Of the candidate's metric minus the champion's, over the rows that both recorded; else why there is none."""
    if name not in (TokenLoss.name, Perplexity.name):
        return None, f"{name} is not measured row by row. Name loss or perplexity"
    try:
        mine, theirs = ((one.texts, np.array(one.recorded[1])) for one in (candidate, champion))
    except RtrainError as error:
        return None, one_line(error)
    if mine[0] != theirs[0]:
        return None, "the two were not scored on the same tokens. Train both on the same data, split and tokenizer"
    rows, tokens = len(mine[1]), len(mine[0][0]) - 1
    if rows < 2:
        return None, "one row makes no interval. Set handoff.rows higher, or data.test"
    of = _perplexity if name == Perplexity.name else np.asarray
    between = mean_interval(theirs[1] / tokens, mine[1] / tokens, of)
    return (between.low, between.high), ""


def _perplexity(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(np.minimum(losses, MOST_EXPONENT))
