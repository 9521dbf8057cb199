"""What a request for an answer is, and what comes back of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from rtrain.language.sampling import Sampling


@dataclass(frozen=True)
class Token:
    """A token of an answer, with its log probability before temperature, and the likeliest in its place."""

    id: int
    logprob: float | None
    """None of a prompt's first token: nothing stands before it."""
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What an answer grew by."""

    text: str
    tokens: tuple[Token, ...] = ()
    """Where log probabilities are asked for: those whose text is out."""
    finish: str = ""
    """`stop`, `length` or `error` in the last piece."""
    computed: int = 0
    """Tokens that the model has computed for this answer so far; that which ended it, too."""
    error: str = ""


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: str
    ids: tuple[int, ...]
    """All that the model computed, with the token that ended it."""
    tokens: tuple[Token, ...]
    finish: str


@dataclass(eq=False)
class Ticket:
    """A request under way."""

    prompt: tuple[int, ...]
    sampling: Sampling
    emit: Callable[[Piece], None]
    """Called in the model's thread with each piece."""
    ids: list[int] = field(default_factory=list)
    cancelled: bool = False

    def cancel(self) -> None:
        """Compute no further token of it; no piece comes any more, but perhaps one that is on its way."""
        self.cancelled = True
