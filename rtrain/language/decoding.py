"""How replicas of a language model answer."""

import json
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from rtrain.errors import ConfigError
from rtrain.export.artifact import export_in
from rtrain.language.guard import Guard

Computes = Literal["rtrain", "vllm"]
LANES, WAITING = 8, 64


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """What computes answers, how many at once, guesses of tokens, and a guard of what is asked and answered; of each
    replica."""

    engine: Computes = "rtrain"
    """What computes them: rtrain's own, by transformers, or vLLM, by `ray.serve.llm`, for GPUs (`rtrain[vllm]`)."""
    engine_args: tuple[str, ...] = ()
    """Of vLLM, as `NAME=VALUE` by its own names, values as JSON says them, as `max_model_len=4096`."""
    lanes: int | None = None
    """Answers that are computed at once; none: 8, and of vLLM as many as it takes by itself."""
    waiting: int | None = None
    """Requests that wait for one of them, beyond which it says 429; none: 64."""
    together: bool = True
    """All answers in one forward pass; else each by itself."""
    guesses: int = 0
    """Tokens of a greedy answer that are guessed at once, by `draft`, or else by what the text repeats."""
    draft: str = ""
    """The finished run of a smaller model of the same tokenizer, or its export; empty: none."""
    guard: Guard | None = None
    """Sees what is asked and what is answered; none: nobody does."""

    def __post_init__(self) -> None:
        for name, least in (("lanes", 1), ("waiting", 0), ("guesses", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ConfigError(f"Decoding.{name}: must be at least {least}, got {value}")
        if self.engine not in get_args(Computes):
            raise ConfigError(f"Decoding.engine: {' or '.join(get_args(Computes))}, got {self.engine!r}")
        if self.engine == "vllm":
            if not self.together:
                raise ConfigError("Decoding.together: vLLM has none. Leave it out, or set engine to rtrain")
            self.arguments()
        elif self.engine_args:
            raise ConfigError("Decoding.engine_args: of vLLM alone. Set engine to vllm, or leave them out")
        if self.draft:  # replicas work in another folder
            object.__setattr__(self, "draft", export_in(self.draft))

    def options(self) -> dict[str, Any]:
        """As `language_application` takes them."""
        said = {field.name: getattr(self, field.name) for field in fields(self) if not field.name.startswith("engine")}
        return said | {"lanes": self.lanes or LANES, "waiting": WAITING if self.waiting is None else self.waiting}

    def arguments(self) -> dict[str, Any]:
        """`engine_args` by their names.

        Raises:
            ConfigError: one that is no `NAME=VALUE`, or is said twice.
        """
        found: dict[str, Any] = {}
        for said in self.engine_args:
            name, is_there, text = said.partition("=")
            name = name.strip().lstrip("-").replace("-", "_")
            if not (is_there and name and text):
                raise ConfigError(f"Decoding.engine_args: NAME=VALUE, as max_model_len=4096, got {said!r}")
            if name in found:
                raise ConfigError(f"Decoding.engine_args: {name} is said twice. Say it once")
            try:
                found[name] = json.loads(text)
            except ValueError:  # a word
                found[name] = text
        return found
