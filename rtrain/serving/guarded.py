"""What a guard sees of a question to vLLM and of its answer: all that has words in it, and nothing goes out unseen."""

from collections.abc import Iterator, Mapping
from typing import Any

from rtrain.language.guard import Guard
from rtrain.serving.openai import Refused, event

UNSEEN = (
    "logprobs", "top_logprobs", "prompt_logprobs", "return_token_ids", "return_tokens_as_token_ids", "prompt_embeds",
    "tools", "tool_choice", "functions", "function_call", "kv_transfer_params",
)  # fmt: skip
"""Of a question: what would give out, or take in, words that no guard sees."""


def words_of(asked: Mapping[str, Any]) -> list[str]:
    """What is asked, of each prompt, or of a conversation the turns in a line each.

    Raises:
        Refused: what has words that no guard can see.
    """
    for name in UNSEEN:
        if asked.get(name) is not None and asked[name] is not False:
            raise Refused(400, f"{name}: not here, since a guard has to see all that is said")
    if "messages" in asked:
        return ["\n".join(_turn(message) for message in asked["messages"])]
    prompt = asked.get("prompt")
    found: list[Any] = prompt if isinstance(prompt, list) else [prompt]
    if not all(isinstance(one, str) for one in found):
        raise Refused(400, "prompt: here of words, not tokens, since a guard has to see them")
    return found


def _turn(message: Any) -> str:
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    if not parts or any(not isinstance(part, Mapping) or not isinstance(part.get("text"), str) for part in parts):
        raise Refused(400, "messages: here of words alone, since a guard has to see them")
    return "\n".join(part["text"] for part in parts)


def given_by(guard: Guard, answer: Mapping[str, Any]) -> dict[str, Any]:
    """A whole answer as the guard gives it out."""
    choices = []
    for choice in answer["choices"]:
        said = str(choice["text"] if "text" in choice else choice["message"].get("content") or "")
        told = guard.answer(said)
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
