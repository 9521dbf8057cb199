"""How replicas of a language model answer."""

from dataclasses import dataclass, fields
from typing import Any

from rtrain.errors import ConfigError
from rtrain.export.artifact import export_in
from rtrain.language.guard import Guard


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Answers at once, guesses of tokens, and a guard of what is asked and answered; of each replica."""

    lanes: int = 8
    """Answers that are computed at once."""
    waiting: int = 64
    """Requests that wait for one of them, beyond which it says 429."""
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
            if getattr(self, name) < least:
                raise ConfigError(f"Decoding.{name}: must be at least {least}, got {getattr(self, name)}")
        if self.draft:  # replicas work in another folder
            object.__setattr__(self, "draft", export_in(self.draft))

    def options(self) -> dict[str, Any]:
        """As `language_application` takes them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
