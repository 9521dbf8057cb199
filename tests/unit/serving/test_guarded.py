"""What a guard sees of a question to vLLM, and what it gives out."""

import json
from typing import Any

import pytest

from rtrain.language.guard import Guard
from rtrain.serving.guarded import as_events, given_by, given_out, why_refused, words_of
from rtrain.serving.openai import Refused

SAID = {"role": "user", "content": "u"}
COUNTS = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


class Withholds(Guard):
    def answer(self, text: str) -> str:
        return text.replace("hunter2", "[withheld]")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"prompt": "a"}, ["a"]),
        ({"prompt": ["a", "b"], "logprobs": None}, ["a", "b"]),
        ({"messages": [{"role": "system", "content": "s"}, SAID], "logprobs": False}, ["s\nu"]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "u"}], "name": "n"}]}, ["u\nn"]),
        ({"prompt": "a", "messages": None, "tools": None, "stream": True, "seed": 3}, ["a"]),
        ({"prompt": "the secret", "messages": [SAID]}, ["the secret"]),
    ],
)  # fmt: skip
def test_words(asked: dict[str, Any], words: list[str]) -> None:
    assert words_of(asked, chat="prompt" not in asked) == words


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": "a", "logprobs": 0}, "logprobs"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"prompt": "a", "prompt_embeds": "x"}, "prompt_embeds"),
        ({"prompt": "a", "return_token_ids": True}, "return_token_ids"),
        ({"messages": [{"role": "user", "content": "u"}], "tools": [{}]}, "tools"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": ["u"]}, "messages"),
        ({"messages": [SAID | {"role": "the secret"}]}, "messages"),
        ({"messages": [SAID | {"role": ["user"]}]}, "messages"),
        ({"messages": [SAID | {"tool_calls": [{"f": "the secret"}]}]}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "text": "u", "image_url": {}}]}]},
            "messages",
        ),
        ({"messages": [SAID], "documents": [{"text": "the secret"}]}, "documents"),
        ({"messages": [SAID], "whatever_comes": 1}, "whatever_comes"),
        ({"prompt": "a", "suffix": "the secret"}, "suffix"),
    ],
)
def test_what_it_cannot_see_is_refused(asked: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as refused:
        words_of(asked, chat="messages" in asked)
    assert (refused.value.status, refused.value.body["param"]) == (400, param)


class Breaks(Guard):
    def ask(self, text: str) -> str:
        raise RuntimeError(f"of {text}")

    def answer(self, text: str) -> str:
        return 7  # type: ignore[return-value]


@pytest.mark.parametrize("look", [why_refused, given_out])
def test_what_a_guard_that_fails_was_to_look_at_does_not_go_on(look: Any, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Refused, match="the guard failed, and what it has not seen is not let through") as refused:
        look(Breaks(), "hunter2")
    assert (refused.value.status, refused.value.body["code"]) == (500, "guard_failed")
    assert "hunter2" not in str(refused.value) and ("of hunter2" in caplog.text or "gave 7" in caplog.text)


def test_answers_and_their_streams() -> None:
    """Nothing goes out but what the guard gave: no tokens, no thoughts, no calls."""
    head = {"id": "1", "object": "text_completion", "created": 1, "model": "m", "usage": COUNTS}
    choices = [
        {"index": n, "text": text, "finish_reason": "stop", "token_ids": [1]}
        for n, text in enumerate(("x hunter2", "y"))
    ]
    given = given_by(Withholds(), head | {"choices": choices, "prompt_token_ids": [1]})
    assert given == head | {"choices": [
        {"index": 0, "text": "x [withheld]", "logprobs": None, "finish_reason": "content_filter"},
        {"index": 1, "text": "y", "logprobs": None, "finish_reason": "stop"},
    ]}  # fmt: skip
    events = list(as_events(given, usage=True))
    assert events[-1] == b"data: [DONE]\n\n"
    told = [json.loads(one.removeprefix(b"data: ")) for one in events[:-1]]
    assert [one["choices"][0]["text"] for one in told[:-1]] == ["x [withheld]", "y"]
    assert (told[-1]["choices"], told[-1]["usage"], len(list(as_events(given, usage=False)))) == ([], COUNTS, 3)

    message = {"role": "assistant", "content": "hunter2", "reasoning": "hunter2", "tool_calls": [{"f": "hunter2"}]}
    chat = head | {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    given = given_by(Withholds(), chat)
    assert given["choices"][0]["message"] == {"role": "assistant", "content": "[withheld]"}
    (first, done) = as_events(given, usage=False)
    told_first = json.loads(first.removeprefix(b"data: "))
    assert told_first["object"] == "chat.completion.chunk"
    assert told_first["choices"][0]["delta"] == {"role": "assistant", "content": "[withheld]"}
    assert b"hunter2" not in first + done
