"""How a guard is asked; and what it sees of a question to vLLM and of its answer: all that has words in it."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rtrain.language.guard import Guard
from rtrain.serving.openai import Refused, event

LOG = logging.getLogger("rtrain.serving")
SAFE = frozenset((
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "min_tokens", "temperature", "top_p", "top_k",
    "min_p", "n", "seed", "stop", "stop_token_ids", "ignore_eos", "stream", "stream_options", "user", "echo",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias",
))  # fmt: skip
"""Keys of a question that bring no words in but where a guard looks, and none out but as a text."""
ROLES = ("system", "developer", "user", "assistant")
OF_TURN, OF_PART = {"role", "content", "name"}, {"type", "text"}


def why_refused(guard: Guard, text: str) -> str:
    """What the guard says of what is asked; empty: nothing.

    Raises:
        Refused: it failed, and what nobody looked at is not let through.
    """
    return _said(guard.ask, text)


def given_out(guard: Guard, text: str) -> str:
    """What it gives out in place of an answer; raises as `why_refused`."""
    return _said(guard.answer, text)


def _said(look: Callable[[str], object], text: str) -> str:
    try:
        said = look(text)
        if not isinstance(said, str):
            raise TypeError(f"{look.__qualname__} gave {said!r:.80}, which is no text")
    except Exception as error:  # a guard of one's own may raise anything
        LOG.exception("the guard failed; what it was to look at is not let through")
        why = "the guard failed, and what it has not seen is not let through"
        raise Refused(500, why, kind="server_error", code="guard_failed") from error
    return said


def words_of(asked: Mapping[str, Any], chat: bool) -> list[str]:
    """What is asked, of each prompt, or of a conversation the turns in a line each.

    Raises:
        Refused: what has words, or may have, that no guard can see.
    """
    for name, value in asked.items():
        if name not in SAFE and value is not None and value is not False:
            raise Refused(400, f"{name}: not here, since a guard has to see all that is said")
    if chat:
        return ["\n".join(_turn(message) for message in asked["messages"])]
    prompt = asked.get("prompt")
    found: list[Any] = prompt if isinstance(prompt, list) else [prompt]
    if not all(isinstance(one, str) for one in found):
        raise Refused(400, "prompt: here of words, not tokens, since a guard has to see them")
    return found


def _turn(message: Any) -> str:
    """Of a turn all words, or a refusal."""
    words: list[Any] = [None]
    if isinstance(message, Mapping) and OF_TURN.issuperset(message) and message.get("role") in ROLES:
        content = message.get("content")
        words = [_part(part) for part in content] if isinstance(content, list) else [content]
        words += [message["name"]] if message.get("name") else []
    if not words or not all(isinstance(word, str) for word in words):
        raise Refused(400, "messages: here of words alone, since a guard has to see them")
    return "\n".join(words)


def _part(part: Any) -> Any:
    """Its words; none: it is of something else."""
    return part["text"] if isinstance(part, Mapping) and set(part) == OF_PART and part["type"] == "text" else None


def given_by(guard: Guard, answer: Mapping[str, Any]) -> dict[str, Any]:
    """A whole answer as the guard gives it out."""
    choices = []
    for choice in answer["choices"]:
        said = str(choice["text"] if "text" in choice else choice["message"].get("content") or "")
        told = given_out(guard, said)
        finish = choice["finish_reason"] if told == said else "content_filter"
        words = {"text": told} if "text" in choice else {"message": {"role": "assistant", "content": told}}
        choices.append({"index": choice["index"], **words, "logprobs": None, "finish_reason": finish})
    return {name: answer[name] for name in ("id", "object", "created", "model")} | {
        "choices": choices, "usage": answer["usage"]
    }  # fmt: skip


def as_events(answer: Mapping[str, Any], usage: bool) -> Iterator[bytes]:
    """A whole answer as a stream: all of it has been seen by then. `usage`: with its counts at the end."""
    head = {name: answer[name] for name in ("id", "created", "model")}
    head["object"] = {"chat.completion": "chat.completion.chunk"}.get(answer["object"], answer["object"])
    for choice in answer["choices"]:
        yield event(head | {"choices": [{"delta" if n == "message" else n: of for n, of in choice.items()}]})
    if usage:
        yield event(head | {"choices": [], "usage": answer["usage"]})
    yield b"data: [DONE]\n\n"
