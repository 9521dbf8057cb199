"""What an engine says to prompts, all at once: greedy, drawn, and what they cost."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rtrain.language.engine import Engine
from rtrain.language.model import load
from rtrain.language.sampling import Sampling

ASKED = (
    Sampling(max_tokens=12, temperature=0, logprobs=2),
    Sampling(max_tokens=12, temperature=0.8, top_p=0.9, seed=3, logprobs=2),
    Sampling(max_tokens=0, echo=True, logprobs=0),
)


def texts_of(
    export: str, prompts: list[list[int]], device: str, pool: ThreadPoolExecutor, **options: Any
) -> list[list[tuple[int, float]]]:
    """Tokens, each with its log probability; 0.0 of the first, which has none."""
    engine = Engine(load(export, device=device), lanes=4, **options)
    try:
        model = engine.language.model
        assert model.device.type == device and {x.device.type for x in model.parameters()} == {device}
        said = [list(pool.map(lambda prompt, of=of: engine.answer(prompt, of).tokens, prompts)) for of in ASKED]
    finally:
        engine.close()
    return [[(token.id, token.logprob or 0.0) for token in tokens] for answers in said for tokens in answers]
