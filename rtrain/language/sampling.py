"""How a next token is chosen of the logits: the likeliest, or drawn.

Shape legend: V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rtrain.errors import DataError

MOST_LOGPROBS = 20
MOST_STOPS = 4
MOST_TEMPERATURE = 2
MOST_PENALTY = 2
MOST_BIAS, MOST_BIASES = 100, 1024
SEEDS = 2**63


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What a request asks of its tokens; the messages begin with the field that does not fit."""

    max_tokens: int = 16
    """Tokens at most; 0, with `echo`: none, the prompt's alone are scored."""
    echo: bool = False
    """Whether the answer begins with the prompt, and its tokens have log probabilities where those are asked for."""
    temperature: float = 1.0
    """What logits are divided by; 0: the likeliest token, always."""
    top_p: float = 1.0
    """Drawn of the likeliest tokens that together have this probability (Holtzman et al., arXiv:1904.09751)."""
    frequency_penalty: float = 0.0
    """What a token's logit falls by for each time that the answer has it already."""
    presence_penalty: float = 0.0
    """What it falls by where the answer has it already."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Tokens, and what is added to the logit of each: at -100 it does not come, at 100 nothing else does."""
    seed: int | None = None
    """Same seed, same tokens, whatever runs beside it; none: another each time."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer, and that are no part of it."""
    logprobs: int | None = None
    """How many of the likeliest tokens to name at each place; none: no log probabilities at all."""

    def __post_init__(self) -> None:
        if self.max_tokens < (0 if self.echo else 1):
            raise DataError(f"max_tokens: must be at least 1, or 0 with echo, got {self.max_tokens}")
        if not 0 <= self.temperature <= MOST_TEMPERATURE:
            raise DataError(f"temperature: must be from 0 to {MOST_TEMPERATURE}, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise DataError(f"top_p: must be above 0 and at most 1, got {self.top_p}")
        for name in ("frequency_penalty", "presence_penalty"):
            if not -MOST_PENALTY <= (value := getattr(self, name)) <= MOST_PENALTY:
                raise DataError(f"{name}: must be from -{MOST_PENALTY} to {MOST_PENALTY}, got {value}")
        if len(self.logit_bias) > MOST_BIASES:
            raise DataError(f"logit_bias: at most {MOST_BIASES} tokens, got {len(self.logit_bias)}")
        if wrong := [bias for _, bias in self.logit_bias if not -MOST_BIAS <= bias <= MOST_BIAS]:
            raise DataError(f"logit_bias: must be from -{MOST_BIAS} to {MOST_BIAS}, got {wrong[0]}")
        if self.seed is not None and not 0 <= self.seed < SEEDS:
            raise DataError(f"seed: must be from 0 to 2**63 - 1, got {self.seed}")
        if len(self.stop) > MOST_STOPS or not all(self.stop):
            raise DataError(f"stop: at most {MOST_STOPS} texts, none of them empty, got {list(self.stop)}")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise DataError(f"logprobs: must be from 0 to {MOST_LOGPROBS}, got {self.logprobs}")

    def again(self, number: int) -> "Sampling":
        """Of a further answer to the same prompt: other tokens, by a seed of its own."""
        return self if self.seed is None else replace(self, seed=(self.seed + number) % SEEDS)

    def generator(self) -> torch.Generator:
        """What one answer draws with; its own, so that nothing beside it moves it on."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator

    def moved(self, logits_V: Tensor, answer: Sequence[int]) -> Tensor:
        """Logits with the biases, less the penalties of the tokens that the answer has so far."""
        penalised = bool(answer and (self.frequency_penalty or self.presence_penalty))
        if not (penalised or self.logit_bias):
            return logits_V
        logits_V = logits_V.clone()
        if penalised:
            tokens, times = torch.tensor(answer).unique(return_counts=True)
            logits_V[tokens] -= self.frequency_penalty * times + self.presence_penalty
        if self.logit_bias:
            tokens, biases = zip(*self.logit_bias, strict=True)
            logits_V[list(tokens)] += torch.tensor(biases, dtype=logits_V.dtype)
        return logits_V

    def choose(self, logits_V: Tensor, answer: Sequence[int], generator: torch.Generator) -> int:
        """The token that follows `answer`, of float32 logits on CPU."""
        logits_V = self.moved(logits_V, answer)
        if self.temperature == 0:
            return int(logits_V.argmax())
        # The maximum first: a small temperature makes infinities of what is not below 0.
        probabilities_V = ((logits_V - logits_V.max()).double() / self.temperature).softmax(-1)
        if self.top_p < 1:
            sorted_V, order_V = probabilities_V.sort(descending=True, stable=True)
            before_V = sorted_V.cumsum(-1) - sorted_V
            probabilities_V = torch.zeros_like(sorted_V).index_put(
                (order_V,), sorted_V.where(before_V < self.top_p, torch.zeros_like(sorted_V))
            )
        return int(torch.multinomial(probabilities_V, 1, generator=generator))
