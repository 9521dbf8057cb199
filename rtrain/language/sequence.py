"""An answer that grows token by token, of logits that somebody else computes.

Shape legend: V vocabulary.
"""

from collections import deque

from torch import Tensor

from rtrain.errors import one_line
from rtrain.language.model import Language
from rtrain.language.pieces import Piece, Ticket, Token
from rtrain.language.text import Detokenizer, Stops


class Sequence:
    """What is kept of one request in the model's thread; its keys and values lie elsewhere."""

    def __init__(self, language: Language, ticket: Ticket):
        self.language, self.ticket = language, ticket
        self.generator = ticket.sampling.generator()
        self.words, self.stops = Detokenizer(language.text), Stops(ticket.sampling.stop)
        self.made = self.out = 0
        """Characters that the tokens have made, and that are out."""
        self.held: deque[tuple[Token, int, int]] = deque()
        """Tokens whose text is not out yet, with where it begins and ends."""
        self.seen: list[Token] = []
        """Of a prompt that is echoed, the tokens behind its first, scored."""

    @property
    def computed(self) -> list[int]:
        """What of the prompt is computed: without an answer nothing follows from its last token."""
        prompt = list(self.ticket.prompt)
        return prompt if self.ticket.sampling.max_tokens else prompt[:-1]

    def see(self, logits_QV: Tensor) -> None:
        """Logits behind further tokens of a prompt that is a part of the answer."""
        asked, prompt = self.ticket.sampling.logprobs, self.ticket.prompt
        if asked is None:
            return
        for logits_V, token in zip(logits_QV, prompt[len(self.seen) + 1 :], strict=False):
            self.seen.append(_scored(token, logits_V, asked))

    def echo(self) -> bool:
        """The prompt as the answer's beginning; whether an answer follows."""
        sampling, prompt = self.ticket.sampling, list(self.ticket.prompt)
        tokens = (Token(prompt[0], None), *self.seen) if sampling.logprobs is not None else ()
        self.seen = []
        return self._emit(Piece(self.language.text(prompt), tokens, "" if sampling.max_tokens else "length"))

    @property
    def text(self) -> list[int]:
        """Prompt and answer so far."""
        return [*self.ticket.prompt, *self.ticket.ids]

    @property
    def greedy(self) -> bool:
        """Whether its tokens are the likeliest, so that they can be guessed."""
        return self.ticket.sampling.temperature == 0

    @property
    def left(self) -> int:
        """Tokens that it may still grow by."""
        return self.ticket.sampling.max_tokens - len(self.ticket.ids)

    def take(self, logits_V: Tensor) -> bool:
        """One token more, of float32 logits on CPU; whether there will be another."""
        if self.ticket.cancelled:
            return False
        try:
            piece = self._grow(logits_V)
        except Exception as error:  # one request's failure is not that of the others
            return self.fail(error)
        return self._emit(piece)

    def fail(self, error: Exception) -> bool:
        """End it with an error; false, as of what does not go on."""
        return self._emit(Piece("", finish="error", error=one_line(error), computed=len(self.ticket.ids)))

    def _emit(self, piece: Piece) -> bool:
        try:
            if piece.text or piece.tokens or piece.finish:
                self.ticket.emit(piece)
        except RuntimeError:  # the event loop that waited for it is gone
            return False
        return not piece.finish

    def _grow(self, logits_V: Tensor) -> Piece:
        sampling = self.ticket.sampling
        token = sampling.choose(logits_V, self.ticket.ids, self.generator)
        self.ticket.ids.append(token)
        ended = token in self.language.ends
        text = "" if ended else self.words.add(token)
        if sampling.logprobs is not None and not ended:
            self.held.append((_scored(token, logits_V, sampling.logprobs), self.made, self.made + len(text)))
        full = self.left <= 0
        if ended or full:
            text += self.words.rest()
        self.made += len(text)
        given, stopped = self.stops.add(text)
        if (ended or full) and not stopped:
            given += self.stops.rest()
        finish = "stop" if ended or stopped else "length" if full else ""
        return Piece(given, self._let_out(len(given), finish, stopped), finish, len(self.ticket.ids))

    def _let_out(self, characters: int, finish: str, stopped: bool) -> tuple[Token, ...]:
        self.out += characters
        found = []
        while self.held:
            token, begin, end = self.held[0]
            if not (end <= self.out or (finish and (not stopped or begin < self.out))):
                break
            found.append(token)
            self.held.popleft()
        return tuple(found)


def _scored(token: int, logits_V: Tensor, likeliest: int) -> Token:
    logprobs_V = logits_V.log_softmax(-1)
    best = logprobs_V.topk(min(likeliest, len(logprobs_V)))
    return Token(token, float(logprobs_V[token]), tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
