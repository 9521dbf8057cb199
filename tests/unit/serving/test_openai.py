"""What a question in OpenAI's shape may ask for."""

from typing import Any

import pytest
from pydantic import ValidationError

from rtrain.errors import DataError
from rtrain.serving.openai import Chat, Refused, refuse_beyond


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


def test_what_a_conversation_may_say_beside_what_it_needs() -> None:
    asked: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    for wrong in (-1, 21):
        with pytest.raises(ValidationError, match="top_logprobs"):
            Chat.model_validate(asked | {"logprobs": False, "top_logprobs": wrong})
    both = {"max_tokens": 3, "max_completion_tokens": 3}
    assert Chat.model_validate(asked | both).sampling(9).max_tokens == 3
    with pytest.raises(DataError, match="max_tokens: 4, and max_completion_tokens another. Give one of them"):
        Chat.model_validate(asked | both | {"max_tokens": 4}).sampling(9)
