"""Answers of a language model to many requests at once, all computed in one thread.

Requests join and leave between two tokens. Each turn computes the next token of all live sequences in one forward pass,
where the model allows it (`lanes.py`); of greedy ones several, where guesses of them turn out right (`guesses.py`).
"""

import threading
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Listed
from queue import SimpleQueue

import torch

from rtrain.errors import ConfigError, DataError, RtrainError, one_line
from rtrain.language.guesses import Draft, Guesses, Lookup
from rtrain.language.lanes import Alone, Lanes, Together, why_alone
from rtrain.language.model import Language
from rtrain.language.pieces import Answer, Piece, Ticket, Token
from rtrain.language.sampling import Sampling
from rtrain.language.sequence import Sequence

CLOSE_S = 30.0
"""Seconds that a turn under way may take when the engine is closed."""
STOPS = "the server is stopping"


class Busy(RtrainError):
    """So many requests wait that one more is refused."""


class TooLong(DataError):
    """A prompt that leaves no room in the model's context for the tokens that are asked for."""


class Engine:
    """One thread that computes, and a bounded queue before it.

    `lanes`: sequences computed at once. `waiting`: requests that wait for a lane, at most. `together`: in one forward
    pass; else each by itself, as of models that allow no other way. `guesses`: tokens of a greedy answer that are
    guessed at once and checked in one pass, by `draft` or else by what the text has repeated.

    Raises:
        ConfigError: guesses for a model that computes each sequence by itself, or a draft that does not fit.
    """

    def __init__(
        self,
        language: Language,
        *,
        lanes: int = 8,
        waiting: int = 64,
        together: bool = True,
        draft: Language | None = None,
        guesses: int = 0,
    ):
        self.language, self.lanes, self.waiting = language, lanes, waiting
        self.guessed = self.right = 0
        """Tokens that were guessed, and those of them that the model chose, too."""
        self.broken = ""
        """Why this process computes no more: an error of a GPU's, or of this thread's; empty: it does."""
        self._computed, self._guesses = way(language, lanes, together, draft, guesses)
        self._queue: deque[Ticket] = deque()
        self._live: list[Sequence] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="language-model", daemon=True)
        self._thread.start()

    def submit(self, prompt: str | Listed[int], sampling: Sampling, emit: Callable[[Piece], None]) -> Ticket:
        """Ask for an answer; returns at once.

        Raises:
            DataError: as `check`.
            Busy: too many wait.
        """
        ids = self.language.ids(prompt) if isinstance(prompt, str) else list(prompt)
        self.check(ids, sampling)
        ticket = Ticket(tuple(ids), sampling, emit)
        with self._changed:
            if self._closed:
                raise Busy(STOPS)
            self._drop_cancelled()
            if len(self._queue) >= self.waiting:
                raise Busy(f"{len(self._queue)} requests wait already, which is the most. Try again later")
            self._queue.append(ticket)
            self._changed.notify()
        return ticket

    def check(self, ids: Listed[int], sampling: Sampling) -> None:
        """Whether a prompt's tokens can be answered.

        Raises:
            DataError: there are none, or one, or one of `logit_bias`, is not of the vocabulary.
            TooLong: prompt and answer do not fit the context.
        """
        if not ids:
            raise DataError("prompt: it has no token. Give at least one")
        wrong = [i for i in ids if not 0 <= i < self.language.vocab]
        if wrong:
            raise DataError(f"prompt: token {wrong[0]} is not of the vocabulary, 0..{self.language.vocab - 1}")
        if beyond := [i for i, _ in sampling.logit_bias if not 0 <= i < self.language.vocab]:
            raise DataError(f"logit_bias: token {beyond[0]} is not of the vocabulary, 0..{self.language.vocab - 1}")
        # Of a prompt that is only scored the last token is never computed.
        if len(ids) + (sampling.max_tokens or -1) > self.language.context:
            raise TooLong(
                f"prompt: {len(ids)} tokens and {sampling.max_tokens} of the answer, but the model's context has "
                f"{self.language.context}. Give a shorter prompt, or ask for fewer tokens"
            )

    def answer(self, prompt: str | Listed[int], sampling: Sampling, *, timeout_s: float = 600) -> Answer:
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
        """End the thread; requests under way end with an error."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=CLOSE_S)

    def _drop_cancelled(self) -> None:
        self._queue = deque(ticket for ticket in self._queue if not ticket.cancelled)

    def _run(self) -> None:
        try:
            with torch.inference_mode():  # of this thread: nothing of a sequence is touched by another
                self._compute()
        except Exception as error:
            self.broken = one_line(error)
        finally:
            with self._changed:  # nobody waits for what no thread computes
                self._closed = True
                left = [*self._live, *(Sequence(self.language, ticket) for ticket in self._queue)]
                self._live = []
                self._queue.clear()
            for sequence in left:
                sequence.fail(RtrainError(self.broken or STOPS))

    def _compute(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self._queue or self._live):
                    self._changed.wait(timeout=60)
                if self._closed:
                    return
                self._drop_cancelled()
                new = [self._queue.popleft() for _ in range(min(len(self._queue), self.lanes - len(self._live)))]
                joining = [Sequence(self.language, ticket) for ticket in new]
                going, self._live = self._live, self._live + joining
            going += [sequence for sequence in joining if self._join(sequence)]
            going = self._turn([sequence for sequence in going if self._goes_on(sequence)])
            with self._changed:
                self._live = going

    def _goes_on(self, sequence: Sequence) -> bool:
        if sequence.ticket.cancelled:
            self._leave(sequence)
        return not sequence.ticket.cancelled

    def _join(self, sequence: Sequence) -> bool:
        """Compute its prompt and first token; whether there will be another."""
        prompt, sampling = sequence.computed, sequence.ticket.sampling
        try:
            going = True
            if prompt:
                logits_V = self._computed.join(sequence, prompt, sequence.see if sampling.echo else None)
            if sampling.echo:
                going = sequence.echo()
            going = going and sequence.take(logits_V)
            if going and self._guesses and sequence.greedy:
                self._guesses.join(sequence, prompt)
        except Exception as error:  # of its prompt; the others have their own
            self._note(error)
            going = sequence.fail(error)
        if not going:
            self._leave(sequence)
        return going

    def _turn(self, live: list[Sequence]) -> list[Sequence]:
        """A token more of each, and those after it that were guessed; who goes on."""
        if not live:
            return []
        try:
            guessed = self._guess(live)
            fed = {sequence: [sequence.ticket.ids[-1], *guessed.get(sequence, [])] for sequence in live}
            logits = self._computed.forward(fed)
        except Exception as error:  # of the pass that they share
            self._note(error)
            for sequence in live:
                sequence.fail(error)
                self._leave(sequence)
            return []
        return [sequence for sequence in live if self._take(sequence, guessed.get(sequence, []), logits[sequence])]

    def _note(self, error: Exception) -> None:
        """What a GPU says once it says to all that come after, until the process ends."""
        if isinstance(error, torch.AcceleratorError):
            self.broken = one_line(error)

    def _guess(self, live: list[Sequence]) -> dict[Sequence, list[int]]:
        if not self._guesses:
            return {}
        # The pass gives one token more than was guessed right, so the last one needs no guess.
        texts = {sequence: sequence.text for sequence in live if sequence.greedy and sequence.left > 1}
        found = self._guesses.guess(texts)
        return {sequence: tokens[: sequence.left - 1] for sequence, tokens in found.items()}

    def _take(self, sequence: Sequence, guessed: list[int], logits_QV: torch.Tensor) -> bool:
        before, going = len(sequence.text), True
        for place, logits_V in enumerate(logits_QV):
            going = sequence.take(logits_V)
            if not going or guessed[place : place + 1] != sequence.ticket.ids[-1:]:
                break
        made = len(sequence.text) - before
        self.guessed += len(guessed)
        self.right += min(len(guessed), max(0, made - 1))
        if going:
            self._computed.cut(sequence, len(sequence.text) - 1)  # wrong guesses were computed, too
        else:
            self._leave(sequence)
        return going

    def _leave(self, sequence: Sequence) -> None:
        self._computed.leave(sequence)
        if self._guesses:
            self._guesses.leave(sequence)


def way(
    language: Language, lanes: int, together: bool, draft: Language | None, guesses: int
) -> tuple[Lanes, Guesses | None]:
    """How sequences are computed, and who guesses; nothing is allocated yet.

    Raises:
        ConfigError: see `Engine`.
    """
    for name, value, least in (("lanes", lanes, 1), ("guesses", guesses, 1 if draft else 0)):
        if not isinstance(value, int) or value < least:
            of_draft = " where draft is set" if draft and name == "guesses" else ""
            raise ConfigError(f"{name}: must be at least {least}{of_draft}, got {value!r}")
    why = why_alone(language.model) if together else "together is False"
    if why and guesses:
        raise ConfigError(f"guesses: each answer is computed by itself, without guesses: {why}. Set guesses to 0")
    if why:
        return Alone(language.model), None
    computed = Together(language.model, language.context, lanes, guesses=guesses)
    if not guesses:
        return computed, None
    return computed, Draft(draft, language, lanes, guesses) if draft else Lookup(guesses)
