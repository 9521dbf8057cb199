"""Guesses of a greedy answer's next tokens, which the model checks in one pass: tokens stay those of the model alone.

Leviathan et al., arXiv:2211.17192, for the likeliest token; `Lookup` as Saxena's prompt lookup decoding (2023).
"""

from collections.abc import Hashable, Mapping
from typing import Any, Protocol

from rtrain.errors import ConfigError
from rtrain.language.lanes import Together, why_alone
from rtrain.language.model import Language

SIZES = (4, 3)
"""Tokens of the end of a text that are looked up in it, most first."""


class Guesses(Protocol):
    """Who guesses."""

    most: int
    """Tokens at once, at most."""

    def join(self, key: Hashable, text: list[int]) -> None:
        """Begin a text."""

    def guess(self, texts: Mapping[Any, list[int]]) -> dict[Any, list[int]]:
        """What goes on from each text that joined."""

    def leave(self, key: Hashable) -> None:
        """Forget a text, where it is one."""


class Lookup:
    """What came after the same few tokens, when they were last seen in the text."""

    def __init__(self, most: int):
        self.most = most
        self._behind: dict[Hashable, dict[tuple[int, ...], int]] = {}
        """Of each text: some tokens -> the place behind their last occurrence that has one."""
        self._read: dict[Hashable, int] = {}

    def join(self, key: Hashable, text: list[int]) -> None:
        """See `Guesses`."""
        self._behind[key], self._read[key] = {}, 0

    def guess(self, texts: Mapping[Any, list[int]]) -> dict[Any, list[int]]:
        """See `Guesses`."""
        return {key: self._of(key, text) for key, text in texts.items()}

    def _of(self, key: Hashable, text: list[int]) -> list[int]:
        behind = self._behind[key]
        for place in range(self._read[key], len(text)):
            for size in SIZES:
                if size <= place:
                    behind[tuple(text[place - size : place])] = place
        self._read[key] = len(text)
        for size in SIZES:
            place = behind.get(tuple(text[-size:]), 0)
            if place:
                return text[place : place + self.most]
        return []

    def leave(self, key: Hashable) -> None:
        """See `Guesses`."""
        self._behind.pop(key, None)
        self._read.pop(key, None)


class Draft:
    """A smaller model of the same vocabulary.

    Raises:
        ConfigError: it has other tokens, a smaller context, or cannot compute several texts in one pass.
    """

    def __init__(self, draft: Language, language: Language, lanes: int, most: int):
        if draft.tokenizer.get_vocab() != language.tokenizer.get_vocab() or draft.vocab > language.vocab:
            raise ConfigError(
                "draft: its tokenizer has other tokens than the model's. Take a draft of the same tokenizer"
            )
        if draft.context < language.context:
            raise ConfigError(
                f"draft: its context is {draft.context}, the model's {language.context}. Take a draft whose context "
                "is as long"
            )
        if why := why_alone(draft.model):
            raise ConfigError(f"draft: it cannot guess for several answers at once: {why}. Take another, or none")
        self.most = most
        self._lanes = Together(draft.model, draft.context, lanes, guesses=most)
        self._guessed: dict[Hashable, tuple[int, list[int]]] = {}
        """Of each text: how long it was, and what was guessed to come."""

    def join(self, key: Hashable, text: list[int]) -> None:
        """See `Guesses`."""
        self._lanes.join(key, text)
        self._guessed[key] = (len(text), [])

    def guess(self, texts: Mapping[Any, list[int]]) -> dict[Any, list[int]]:
        """See `Guesses`."""
        fed = {}
        for key, text in texts.items():
            before, guessed = self._guessed[key]
            right = 0
            while right < len(guessed) and text[before + right : before + right + 1] == [guessed[right]]:
                right += 1
            self._lanes.cut(key, before + right)
            fed[key] = text[self._lanes.length(key) :]
        found: dict[Any, list[int]] = {key: [] for key in texts}
        for _ in range(self.most if texts else 0):
            logits = self._lanes.forward(fed)
            for key in texts:
                found[key].append(int(logits[key][-1].argmax()))
                fed[key] = found[key][-1:]
        for key, text in texts.items():
            self._guessed[key] = (len(text), found[key])
        return found

    def leave(self, key: Hashable) -> None:
        """See `Guesses`."""
        self._lanes.leave(key)
        self._guessed.pop(key, None)
