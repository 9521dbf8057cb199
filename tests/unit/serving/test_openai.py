"""What a question in OpenAI's shape may ask for."""

from typing import Any

import pytest

from rtrain.serving.openai import Refused, refuse_beyond


@pytest.mark.parametrize(
    ("prompt", "answers", "why"),
    [
        ("a", 1, ""),
        (["a"] * 64, 1, ""),
        ([0, 255], 64, ""),
        ([[0], [255]], 32, ""),
        (None, 1, ""),
        ([], 1, ""),
        (["a"] * 65, 1, "prompt: 65 answers in one request; at most 64"),
        ("a", 65, "n: 65 answers in one request; at most 64"),
        ([[1], [2]], 33, "n: 66 answers in one request; at most 64"),
        ([0, 256], 1, "prompt: there is no token 256; the model has 256"),
        ([[1], [2**70]], 1, "prompt: there is no token 1180591620717411303424; the model has 256"),
        ([-1], 1, "prompt: there is no token -1; the model has 256"),
    ],
)
def test_what_would_end_vllm_is_refused(prompt: Any, answers: int, why: str) -> None:
    if not why:
        refuse_beyond(prompt, answers, 256)
        return
    with pytest.raises(Refused) as refused:
        refuse_beyond(prompt, answers, 256)
    assert (str(refused.value), refused.value.status) == (why, 400)
