"""Tokens a second of a language model's answers on CPU, one thread; prints JSON: python -m bench.language

A decoder of 4 layers x 256 and a draft of 1 x 64, trained here for 240 and 400 steps on the source of Python's library
(`--export` and `--draft`: others). Answers are greedy, `--tokens` each, to 1, 4 and 8 requests at once. `together`
computes one token of all of them in one forward pass, `alone` each in a pass of its own; `lookup` and `draft` check
guesses of further tokens in the same pass. Sides change from pair to pair; seconds are the process's on CPU, as other
processes take the clock's; ratios are of a pair. `kept` is the share of guesses that were right. All sides must give
the same tokens.
"""

import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

import rtrain
from bench.asked import parser
from recipes.gpt_stdlib import run
from rtrain.language.engine import Engine
from rtrain.language.model import load
from rtrain.language.sampling import Sampling

LIVE = (1, 4, 8)
PROMPTS = (
    "def __init__(self, ",
    "import os\nimport sys\n",
    "class Test(unittest.TestCase):\n    def ",
    "    return self.",
    "    if not isinstance(",
    "for name in ",
    "        self.assertEqual(",
    "    try:\n        ",
)


def trained(name: str, layers: int, dim: int, steps: int, folder: str) -> str:
    """The export of a decoder of this size."""
    changes: dict[str, Any] = {"name": name, "storage": folder, "tracking.to": (), "cluster.workers": 1}
    changes |= {"model.layers": layers, "model.dim": dim, "data.context": 128, "global_batch": 8, "optim.lr": 2e-3}
    changes |= {"optim.schedule.warmup_steps": 20, "log_every_steps": 20}
    changes |= dict.fromkeys(("duration.steps", "evaluation.every.steps", "checkpoint.every.steps"), steps)
    result = rtrain.train(rtrain.override(run(), changes), launcher="inline", quiet=True)
    assert result is not None and result.export is not None
    print(f"bench: {name}, {layers} x {dim}, {steps} steps: {result.metrics}", file=sys.stderr, flush=True)
    return result.export


def answered(engine: Engine, live: int, tokens: int) -> tuple[float, list[tuple[int, ...]], float]:
    """Tokens a CPU second of some answers at once, their tokens, and the share of guesses that were right."""
    sampling = Sampling(max_tokens=tokens, temperature=0)
    guessed, right = engine.guessed, engine.right
    began = time.process_time()
    with ThreadPoolExecutor(live) as pool:
        ids = [a.ids for a in pool.map(lambda prompt: engine.answer(prompt, sampling), PROMPTS[:live], timeout=300)]
    took = time.process_time() - began
    return sum(map(len, ids)) / took, ids, (engine.right - right) / max(1, engine.guessed - guessed)


def measured(export: str, draft: str, pairs: int, tokens: int, guesses: int) -> dict[str, Any]:
    """Each side at each number of requests, in pairs."""
    language, small = load(export, device="cpu"), load(draft, device="cpu")
    engines = {
        "alone": Engine(language, together=False),
        "together": Engine(language),
        "lookup": Engine(language, guesses=guesses),
        "draft": Engine(language, guesses=guesses, draft=small),
    }
    found: dict[str, Any] = {}
    for live in LIVE:
        rates: dict[str, list[float]] = {name: [] for name in engines}
        kept: dict[str, float] = {}
        for number in range(-1, pairs):  # the first warms up
            order = list(engines) if number % 2 else list(engines)[::-1]
            answers = {}
            for name in order:
                rate, answers[name], kept[name] = answered(engines[name], live, tokens)
                if number >= 0:
                    rates[name].append(rate)
            differ = [name for name in engines if answers[name] != answers["alone"]]
            if differ:
                raise RuntimeError(f"{live} at once: {', '.join(differ)} gave other tokens than alone")
            print(f"bench: {live} at once, {number + 1}/{pairs}: {rates}", file=sys.stderr, flush=True)
        found[str(live)] = {name: {"tokens_cpu_s": of(rate)} for name, rate in rates.items()}
        for name, by in (("together", "alone"), ("lookup", "together"), ("draft", "together")):
            ratios = [mine / theirs for mine, theirs in zip(rates[name], rates[by], strict=True)]
            found[str(live)][name] |= {f"/{by}": of(ratios), "kept": kept[name]}
    for engine in engines.values():
        engine.close()
    return found


def of(values: list[float]) -> list[float]:
    """Median, least and greatest."""
    return [round(x, 3) for x in (statistics.median(values), min(values), max(values))]


def main() -> None:
    asking = parser("bench.language", __doc__)
    asking.add_argument("--export", help="a language export, in place of one that is trained here")
    asking.add_argument("--draft", help="a smaller one of the same tokenizer")
    asking.add_argument("--pairs", type=int, default=5, help="of each comparison (default 5)")
    asking.add_argument("--tokens", type=int, default=80, help="of each answer (default 80)")
    asking.add_argument("--guesses", type=int, default=4, help="at once (default 4)")
    asked = asking.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="rtrain-bench-") as folder:
        export = asked.export or trained("target", 4, 256, 240, folder)
        draft = asked.draft or trained("draft", 1, 64, 400, folder)
        print(json.dumps(measured(export, draft, asked.pairs, asked.tokens, asked.guesses)))


if __name__ == "__main__":
    main()
