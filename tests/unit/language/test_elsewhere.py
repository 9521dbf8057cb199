"""A language model on a device that is not the processor says what it says there."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.unit.export.test_elsewhere import elsewhere

PROMPTS = [[1, 2, 3, 4], [100, 101, 102], [40] * 9, [50, 60], list(range(30, 70))]
NOISE = 1e-4
"""Of a log probability: what a pass computes beside it moves its last bits."""


@pytest.mark.parametrize("options", [{}, {"guesses": 3}, {"together": False}])
def test_texts_are_those_of_the_processor(options: dict[str, Any], exported: str) -> None:
    from tests.elsewhere.texts import texts_of

    with ThreadPoolExecutor(8) as pool:
        here = texts_of(exported, PROMPTS, "cpu", pool, **options)
    there = elsewhere(export=exported, prompts=PROMPTS, options=options)["texts"]
    assert [[token for token, _ in text] for text in there] == [[token for token, _ in text] for text in here]
    apart = [abs(a - b) for x, y in zip(there, here, strict=True) for (_, a), (_, b) in zip(x, y, strict=True)]
    assert max(apart) < NOISE
