"""Keys and values of the sequences that are computed, and the forward passes over them.

`Together` computes all of them in one pass: a row each, its tokens in slots 0, 1, ... whatever the others have, and a
mask that hides the slots beyond its own. What is taken back is only counted back; the next tokens overwrite its slots.
Most is held when `lanes` sequences fill the context: lanes x context keys and values a layer, and a few guesses.

`Alone` computes each by itself, with transformers' own cache: the same bits as `generate` gives. It is for models whose
layers keep something else than all keys and values (windows, states), or whose positions are not told from outside.

Shape legend: B sequences, Q new tokens, T slots, H heads, D numbers of a head, V vocabulary.
"""

import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

FIRST_SLOTS = 64
"""Slots that a row begins with; they double as they are needed."""


See = Callable[[Tensor], None]
"""Is given logits [Q, V] behind tokens of a prompt, float32 on CPU, part by part in their order."""
PART = 256
"""Tokens of a part: of a long prompt all logits of a large vocabulary would be gigabytes."""


class Lanes(Protocol):
    """Sequences under way, by any key of the caller's."""

    def join(self, key: Hashable, prompt: list[int], see: See | None = None) -> Tensor:
        """Begin a sequence; the logits [V] of its next token, float32 on CPU. `see`: is given those of the prompt."""

    def forward(self, fed: Mapping[Any, list[int]]) -> dict[Any, Tensor]:
        """Compute further tokens of each; the logits [Q, V] behind each of them, float32 on CPU."""

    def cut(self, key: Hashable, length: int) -> None:
        """Keep the first tokens of a sequence only."""

    def length(self, key: Hashable) -> int:
        """Tokens of a sequence that are computed."""

    def leave(self, key: Hashable) -> None:
        """Forget a sequence, where it is one."""


def why_alone(model: Any) -> str:
    """Empty, or why sequences of a model cannot share a forward pass."""
    config = model.config.get_text_config(decoder=True)
    kinds = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers} - {DynamicLayer.__name__}
    if kinds:
        return f"its layers keep {', '.join(sorted(kinds))}, and not all keys and values"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "it takes no positions"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"its attention, {config._attn_implementation}, takes no mask of each sequence"
    rope = str(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None))
    if "dynamic" in rope or "longrope" in rope:
        return "its rotary frequencies change with the longest sequence"
    return ""


@dataclass
class _Place:
    """Where the keys and values of a pass go; one for all layers."""

    row: int = 0
    slots_BQ: Tensor = field(default_factory=lambda: torch.zeros(1, 0, dtype=torch.int64))
    longest: int = 0
    """Slots of the longest row, with the new tokens."""


class _Rows(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers has types, but not all
    """A layer's keys and values, a row each sequence."""

    def __init__(self, place: _Place, lanes: int, most: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self.place, self.lanes, self.most = place, lanes, most

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store what is new; all keys and values of the pass's rows."""
        place = self.place
        self.keys = self._stored(self.keys, key_states)
        self.values = self._stored(self.values, value_states)
        self.is_initialized = True
        rows = slice(place.row, place.row + len(key_states))
        return self.keys[rows, :, : place.longest], self.values[rows, :, : place.longest]

    def _stored(self, kept: Tensor | None, new_BHQD: Tensor) -> Tensor:
        place = self.place
        if kept is None or kept.shape[2] < place.longest:
            slots = min(self.most, max(FIRST_SLOTS, place.longest, 2 * (0 if kept is None else kept.shape[2])))
            # Zeros: what a mask hides is still multiplied, by 0.
            grown = new_BHQD.new_zeros(self.lanes, new_BHQD.shape[1], slots, new_BHQD.shape[3])
            if kept is not None:
                grown[:, :, : kept.shape[2]] = kept
            kept = grown
        rows_B1 = torch.arange(len(new_BHQD), device=kept.device)[:, None] + place.row
        kept[rows_B1, :, place.slots_BQ] = new_BHQD.transpose(1, 2)
        return kept

    def get_seq_length(self) -> int:
        """Slots before the new tokens."""
        return self.place.longest - self.place.slots_BQ.shape[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Slots with the new tokens, from 0."""
        return self.place.longest, 0

    def move(self, row: int, to: int) -> None:
        """Put a row in another's place."""
        if self.keys is not None and self.values is not None:
            self.keys[to], self.values[to] = self.keys[row], self.values[row]


class Together:
    """All sequences in one forward pass; `guesses`: tokens that may be computed beyond a context's end."""

    def __init__(self, model: Any, context: int, lanes: int, *, guesses: int = 0):
        self.model, self.context = model, context
        self.rows: list[Hashable] = []
        self.lengths: list[int] = []
        self._place = _Place()
        self._layers = [_Rows(self._place, lanes, context + guesses) for _ in DynamicCache(config=model.config).layers]
        self._cache = Cache(layers=list(self._layers))

    def join(self, key: Hashable, prompt: list[int], see: See | None = None) -> Tensor:
        """See `Lanes`; the prompt is computed by itself."""
        # Without a mask: with nothing before them, the new tokens only need to be causal.
        if see is None:
            logits_1QV = self._pass(len(self.rows), [prompt], [0], masked=False, logits_to_keep=1)
        else:
            for at in range(0, len(prompt), PART):
                logits_1QV = self._pass(len(self.rows), [prompt[at : at + PART]], [at], masked=at > 0)
                see(logits_1QV[0])
        self.rows.append(key)
        self.lengths.append(len(prompt))
        return logits_1QV[0, -1]

    def forward(self, fed: Mapping[Any, list[int]]) -> dict[Any, Tensor]:
        """See `Lanes`; rows that are fed less than others are filled up, which leaves no trace."""
        new = [fed.get(key, []) for key in self.rows]
        most = max(len(tokens) for tokens in new)
        filled = [tokens + [0] * (most - len(tokens)) for tokens in new]
        same = most == 1 and len(set(self.lengths)) == 1  # nothing to hide
        logits_BQV = self._pass(0, filled, self.lengths, masked=not same)
        for row, tokens in enumerate(new):
            self.lengths[row] += len(tokens)
        return {key: logits_BQV[row, : len(new[row])] for row, key in enumerate(self.rows)}

    def _pass(self, row: int, tokens: list[list[int]], lengths: list[int], *, masked: bool, **options: Any) -> Tensor:
        model, place = self.model, self._place
        tokens_BQ = torch.tensor(tokens, device=model.device)
        new_Q = torch.arange(tokens_BQ.shape[1], device=model.device)
        place.row, place.longest = row, max(lengths) + len(new_Q)
        place.slots_BQ = torch.tensor(lengths, device=model.device)[:, None] + new_Q
        mask = None
        if masked:
            seen_BQT = torch.arange(place.longest, device=model.device) <= place.slots_BQ[:, :, None]
            # Added to scores: of all kinds of masks the one that each of transformers' attentions takes.
            hidden = torch.finfo(model.dtype).min
            mask = torch.zeros(seen_BQT.shape, dtype=model.dtype, device=model.device)
            mask = mask.masked_fill_(~seen_BQT, hidden)[:, None]
        logits: Tensor = model(
            input_ids=tokens_BQ,
            attention_mask=mask,
            position_ids=place.slots_BQ.clamp(max=self.context - 1),
            past_key_values=self._cache,
            use_cache=True,
            **options,
        ).logits
        return logits.float().cpu()

    def cut(self, key: Hashable, length: int) -> None:
        """See `Lanes`."""
        row = self.rows.index(key)
        self.lengths[row] = min(self.lengths[row], length)

    def length(self, key: Hashable) -> int:
        """See `Lanes`."""
        return self.lengths[self.rows.index(key)]

    def leave(self, key: Hashable) -> None:
        """See `Lanes`; the last row takes its place, so that those of a pass lie side by side."""
        if key not in self.rows:
            return
        row, last = self.rows.index(key), len(self.rows) - 1
        if row != last:
            for layer in self._layers:
                layer.move(last, row)
        self.rows[row], self.lengths[row] = self.rows[last], self.lengths[last]
        self.rows.pop()
        self.lengths.pop()
        if not self.rows:
            for layer in self._layers:
                layer.keys = layer.values = None
                layer.is_initialized = False


class Alone:
    """Each sequence in a forward pass of its own."""

    def __init__(self, model: Any):
        self.model = model
        self._caches: dict[Hashable, Any] = {}

    def join(self, key: Hashable, prompt: list[int], see: See | None = None) -> Tensor:
        """See `Lanes`."""
        self._caches[key] = DynamicCache(config=self.model.config)
        if see is None:
            return self._pass(key, prompt, logits_to_keep=1)[-1]
        for at in range(0, len(prompt), PART):
            logits_QV = self._pass(key, prompt[at : at + PART])
            see(logits_QV)
        return logits_QV[-1]

    def forward(self, fed: Mapping[Any, list[int]]) -> dict[Any, Tensor]:
        """See `Lanes`."""
        return {key: self._pass(key, tokens) for key, tokens in fed.items()}

    def _pass(self, key: Hashable, tokens: list[int], **options: Any) -> Tensor:
        tokens_1Q = torch.tensor([tokens], device=self.model.device)
        out = self.model(input_ids=tokens_1Q, past_key_values=self._caches[key], use_cache=True, **options)
        logits: Tensor = out.logits[0]
        return logits.float().cpu()

    def cut(self, key: Hashable, length: int) -> None:
        """See `Lanes`; nothing is guessed here, so nothing is taken back."""
        assert length >= self.length(key)

    def length(self, key: Hashable) -> int:
        """See `Lanes`."""
        return int(self._caches[key].get_seq_length())

    def leave(self, key: Hashable) -> None:
        """See `Lanes`."""
        self._caches.pop(key, None)
