"""Tokens as text while they come: whole characters only, and never a stop text nor the beginning of one."""

from collections.abc import Callable, Sequence

BROKEN = "\ufffd"
"""What a decoder writes for bytes that are no character, or not yet."""
WINDOW = 32
"""Tokens that are decoded together; further back, text does not change any more."""


class Detokenizer:
    """The text of a growing list of tokens; the parts together are the decoding of all."""

    def __init__(self, decode: Callable[[list[int]], str]):
        self.decode = decode
        self._window: list[int] = []
        self._whole = 0
        """Tokens of the window whose text ends with a whole character."""
        self._given = 0

    def add(self, token: int) -> str:
        """The characters that are certain now."""
        self._window.append(token)
        text = self.decode(self._window)
        certain = text.rstrip(BROKEN)
        new, self._given = certain[self._given :], max(self._given, len(certain))
        if certain == text:
            if len(self._window) > WINDOW and self._whole:
                self._window = self._window[self._whole :]
                self._given = len(self.decode(self._window))
            self._whole = len(self._window)
        return new

    def rest(self) -> str:
        """What was held back, at the end."""
        return self.decode(self._window)[self._given :]


class Stops:
    """Text on its way out, held while it may be the beginning of a stop text."""

    def __init__(self, stops: Sequence[str]):
        self.stops = stops
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """What may go out, and whether a stop text came; what is behind one is lost."""
        self._held += text
        places = [at for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if places:
            return self._held[: min(places)], True
        longest = max((len(stop) - 1 for stop in self.stops), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self.stops):
                out, self._held = self._held[:-length], self._held[-length:]
                return out, False
        out, self._held = self._held, ""
        return out, False

    def rest(self) -> str:
        """What was held back, at the end."""
        return self._held
