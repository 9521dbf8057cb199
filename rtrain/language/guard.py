"""What stands between a client and a language model: a look at what is asked, and at what is answered."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Lets everything pass; a subclass says what does not."""

    def ask(self, text: str) -> str:
        """Empty, or why the text is refused, for the client to read."""
        return ""

    def answer(self, text: str) -> str:
        """What is given out in place of an answer; the answer itself where nothing is wrong with it."""
        return text
