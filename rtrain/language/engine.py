"""Answers of a language model to many requests at once, all computed in one thread.

Requests join between two tokens: each turn computes one token of every live sequence. A sequence is computed by itself,
with its own keys and values, so an answer does not depend on what runs beside it: the same bits as `generate` gives.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import torch

from rtrain.errors import DataError, RtrainError, one_line
from rtrain.language.model import Language
from rtrain.language.sampling import Sampling
from rtrain.language.text import Detokenizer, Stops

CLOSE_S = 30.0
"""Seconds that a turn under way may take when the engine is closed."""


class Busy(RtrainError):
    """So many requests wait that one more is refused."""


class TooLong(DataError):
    """A prompt that leaves no room in the model's context for the tokens that are asked for."""


@dataclass(frozen=True)
class Token:
    """A token of an answer, with its log probability before temperature, and the likeliest in its place."""

    id: int
    logprob: float
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


class Engine:
    """One thread that computes, and a bounded queue before it.

    `lanes`: sequences computed at once. `waiting`: requests that wait for a lane, at most.
    """

    def __init__(self, language: Language, *, lanes: int = 8, waiting: int = 64):
        self.language, self.lanes, self.waiting = language, lanes, waiting
        self._queue: deque[Ticket] = deque()
        self._live: list[_Sequence] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="language-model", daemon=True)
        self._thread.start()

    def submit(self, prompt: str | Sequence[int], sampling: Sampling, emit: Callable[[Piece], None]) -> Ticket:
        """Ask for an answer; returns at once.

        Raises:
            DataError: a prompt that is empty or has no token of the vocabulary.
            TooLong: prompt and answer do not fit the context.
            Busy: too many wait.
        """
        ids = self.language.ids(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise DataError("prompt: it has no token. Give at least one")
        wrong = [i for i in ids if not 0 <= i < self.language.vocab]
        if wrong:
            raise DataError(f"prompt: token {wrong[0]} is not of the vocabulary, 0..{self.language.vocab - 1}")
        if len(ids) + sampling.max_tokens > self.language.context:
            raise TooLong(
                f"prompt: {len(ids)} tokens and {sampling.max_tokens} of the answer, but the model's context has "
                f"{self.language.context}. Give a shorter prompt, or ask for fewer tokens"
            )
        ticket = Ticket(tuple(ids), sampling, emit)
        with self._changed:
            if self._closed:
                raise Busy("the server is stopping")
            self._drop_cancelled()
            if len(self._queue) >= self.waiting:
                raise Busy(f"{len(self._queue)} requests wait already, which is the most. Try again later")
            self._queue.append(ticket)
            self._changed.notify()
        return ticket

    def answer(self, prompt: str | Sequence[int], sampling: Sampling, *, timeout_s: float = 600) -> Answer:
        """A whole answer, waited for.

        Raises:
            RtrainError: the model failed.
            queue.Empty: nothing came for `timeout_s`.
        """
        pieces: SimpleQueue[Piece] = SimpleQueue()
        ticket = self.submit(prompt, sampling, pieces.put)
        text = ""
        tokens: list[Token] = []
        try:
            while True:
                piece = pieces.get(timeout=timeout_s)
                text += piece.text
                tokens += piece.tokens
                if piece.error:
                    raise RtrainError(piece.error)
                if piece.finish:
                    return Answer(text, tuple(ticket.ids), tuple(tokens), piece.finish)
        finally:
            ticket.cancel()

    @property
    def load(self) -> tuple[int, int]:
        """Sequences that are computed, and requests that wait."""
        with self._changed:
            return len(self._live), len(self._queue)

    def close(self) -> None:
        """End the thread; requests under way get no further piece."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=CLOSE_S)

    def _drop_cancelled(self) -> None:
        self._queue = deque(ticket for ticket in self._queue if not ticket.cancelled)

    def _run(self) -> None:
        with torch.inference_mode():  # of this thread: nothing of a sequence is touched by another
            while True:
                with self._changed:
                    while not (self._closed or self._queue or self._live):
                        self._changed.wait(timeout=60)
                    if self._closed:
                        return
                    self._drop_cancelled()
                    while self._queue and len(self._live) < self.lanes:
                        self._live.append(_Sequence(self.language, self._queue.popleft()))
                going = [sequence for sequence in self._live if sequence.step()]
                with self._changed:
                    self._live = going


class _Sequence:
    """An answer that grows, in the model's thread."""

    def __init__(self, language: Language, ticket: Ticket):
        self.language, self.ticket = language, ticket
        self.generator = ticket.sampling.generator()
        self.cache: Any = None
        self.next = list(ticket.prompt)
        self.words, self.stops = Detokenizer(language.text), Stops(ticket.sampling.stop)
        self.made = self.out = 0
        """Characters that the tokens have made, and that are out."""
        self.held: deque[tuple[Token, int, int]] = deque()
        """Tokens whose text is not out yet, with where it begins and ends."""

    def step(self) -> bool:
        """One token more; whether there will be another."""
        if self.ticket.cancelled:
            return False
        try:
            piece = self._grow()
        except Exception as error:  # one request's failure is not that of the others
            piece = Piece("", finish="error", error=one_line(error), computed=len(self.ticket.ids))
        try:
            if piece.text or piece.tokens or piece.finish:
                self.ticket.emit(piece)
        except RuntimeError:  # the event loop that waited for it is gone
            return False
        return not piece.finish

    def _grow(self) -> Piece:
        model, sampling = self.language.model, self.ticket.sampling
        if self.cache is None:
            from transformers import DynamicCache

            self.cache = DynamicCache(config=model.config)
        tokens_1T = torch.tensor([self.next], device=model.device)
        out = model(input_ids=tokens_1T, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        logits_V = out.logits[0, -1].float().cpu()
        token = sampling.choose(logits_V, self.generator)
        self.next = [token]
        self.ticket.ids.append(token)
        ended = token in self.language.ends
        text = "" if ended else self.words.add(token)
        if sampling.logprobs is not None and not ended:
            self.held.append((_scored(token, logits_V, sampling.logprobs), self.made, self.made + len(text)))
        full = len(self.ticket.ids) >= sampling.max_tokens
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


def _scored(token: int, logits_V: torch.Tensor, likeliest: int) -> Token:
    logprobs_V = logits_V.log_softmax(-1)
    best = logprobs_V.topk(min(likeliest, len(logprobs_V)))
    return Token(token, float(logprobs_V[token]), tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
