"""An export in a process of its own, as a server would have it: does it load, answer, and answer what the trainer said.

python -m rtrain.release.probe < asked.json      prints what it saw as one line of JSON

A model that takes the process down, or never ends, takes down or holds that process alone.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from rtrain.errors import RtrainError, one_line
from rtrain.export.artifact import prepare
from rtrain.process import apart_from_here

DEADLINE_S = 600.0
"""For loading and answering, beside what is done once a machine."""
SIZES = (1, 64)
"""Rows of a request whose time is taken."""
TIMES = 100
"""Requests of each size."""
SCORED_S, TIMED_S = 300.0, 60.0
"""Of a language model, for scoring rows, of which at least one is, and for timing requests."""
FOUND = 10
"""Items that a retrieval model is asked for."""


@dataclass(frozen=True)
class Probed:
    """What was seen."""

    error: str = ""
    """Why it could not be loaded or asked; empty: it could."""
    load_s: float = 0.0
    peak_bytes: int = 0
    """Most that the process held in memory, libraries and all."""
    asked: int = 0
    answered: int = 0
    """Of those asked for, whose answers are all numbers; of a retrieval model there is at least one."""
    difference: float | None = None
    """Largest difference of an answer from the trainer's, of a number beyond 1 by its share; of items found, of the
    score at a place, all compared, and of an index's scores from the products. None: there is none to compare."""
    recall: float | None = None
    """Of an export with an index the share of the best items, of all compared, that it finds. None: it has none."""
    recall_error: float = 0.0
    """Its standard error, over those who asked."""
    latency_ms: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Rows of a request -> median and 99th percentile of one thread's time."""


def probe(
    export: str,
    rows: Sequence[Any],
    said: Sequence[Any],
    *,
    modules: Sequence[str] = (),
    deadline_s: float = DEADLINE_S,
) -> Probed:
    """Load an export in a new process and ask it.

    Args:
        export: its folder.
        rows: requests of a ranking model; tokens, for a language model to score; of a retrieval model `whom`, `seen`
            and `times` each, or none: it is asked for some of its own users or items.
        said: what the trainer said of each row; of a retrieval model the items that it found, by place, of a language
            model a row's loss. None of them: nothing is compared.
        modules: of a model of one's own, imported here, which the process imports first.
        deadline_s: how long it may take.
    """
    prepare(export)
    asked = {"export": export, "rows": list(rows), "said": list(said), "modules": list(modules)}
    told, error = apart_from_here("rtrain.release.probe", asked, deadline_s)
    return Probed(error=error) if error else Probed(**told)


def main() -> None:
    """What the process does."""
    asked = json.load(sys.stdin)
    try:
        for name in asked["modules"]:
            import_module(name)
        found = _ask(asked["export"], asked["rows"], asked["said"])
    except RtrainError as error:
        found = Probed(error=one_line(error))
    print(json.dumps(asdict(found)))


def _ask(export: str, rows: list[Any], said: list[Any]) -> Probed:
    import torch

    from rtrain.export.artifact import Predictor, is_retrieval
    from rtrain.export.encoders import Encoders
    from rtrain.export.huggingface import is_language

    torch.set_num_threads(1)
    began, difference, recall, error = time.perf_counter(), None, None, 0.0
    if is_language(export):
        return _spoken(export, rows, said)
    if is_retrieval(export):
        encoders = Encoders(export)
        load_s = time.perf_counter() - began
        whom, times = encoders.some(max(SIZES))
        seen = None
        if rows:
            whom, seen = [row["whom"] for row in rows], [row["seen"] for row in rows]
            times = [row["times"] for row in rows] if encoders.timed else None

        def ask(count: int) -> None:
            encoders.recommend(whom[:count], FOUND, times=times[:count] if times else None)

        found = encoders.recommend(whom, FOUND, times=times, seen=seen)
        asked, whole = len(whom), found
        if encoders.index is not None:
            whole = encoders.recommend(whom, FOUND, times=times, seen=seen, exact=True)
            recall, error, difference = _indexed(encoders, whom, times)
        answered = sum(bool(items) and all(np.isfinite(score) for _, score in items) for items in found)
        if rows:
            apart = (
                _apart(encoders, whom[n : n + 1], times[n : n + 1] if times else None, whole[n], said[n])
                for n in range(asked)
            )
            difference = max(difference or 0.0, *apart)
    else:
        predictor = Predictor(export)
        load_s = time.perf_counter() - began
        asked = len(rows)
        answers = np.array(predictor.predict(rows))
        answered = int(np.isfinite(answers.reshape(len(rows), -1)).all(1).sum())
        if said:
            wanted = np.array(said)
            difference = float(np.max(np.abs(answers - wanted) / np.maximum(1.0, np.abs(wanted))))

        def ask(count: int) -> None:
            predictor.predict(rows[:count])

    latency = {str(count): _timed(ask, count) for count in SIZES}
    return Probed("", load_s, _peak(), asked, answered, difference, recall, error, latency)


def _spoken(export: str, rows: list[list[int]], said: list[float]) -> Probed:
    """Of a language model: what the tokens of rows cost it, as many of them as there is time for."""
    from rtrain.handoff.served import apart
    from rtrain.language.engine import Engine
    from rtrain.language.model import load
    from rtrain.language.sampling import Sampling

    began = time.perf_counter()
    engine = Engine(load(export), lanes=1)
    load_s, losses = time.perf_counter() - began, list[float]()
    scored, first = Sampling(max_tokens=0, echo=True, logprobs=0), Sampling(max_tokens=1, temperature=0)
    for row in rows:
        tokens = engine.answer(row, scored).tokens
        losses.append(-sum(token.logprob for token in tokens if token.logprob is not None))
        if time.perf_counter() - began > SCORED_S:
            break

    prompt = rows[0][:-2] or rows[0][:1]  # as long as leaves room for one token
    latency = {"1": _timed(lambda _: engine.answer(prompt, first), 1, most_s=TIMED_S)}
    engine.close()
    difference = apart(losses, said[: len(losses)]) if said else None
    answered = int(np.isfinite(losses).sum())
    return Probed("", load_s, _peak(), len(losses), answered, difference, latency_ms=latency)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _apart(encoders: Any, whom: list[Any], times: Any, found: list[tuple[Any, float]], wanted: list[Any]) -> float:
    """How far the score of what stands at a place is from that of what the trainer found there: 0 of the same items.

    Two items whose scores are the same but for rounding may have each other's place.
    """
    if [item for item, _ in found[: len(wanted)]] == wanted:
        return 0.0
    if len(found) < len(wanted):
        return float("inf")
    here = encoders.item(wanted) @ encoders.user(whom, times)[0]
    there = np.array([score for _, score in found[: len(wanted)]])
    return float(np.max(np.abs(here - there) / np.maximum(1.0, np.abs(there))))


def _indexed(encoders: Any, whom: list[Any], times: Any) -> tuple[float, float, float]:
    """What an index finds of the best items, its standard error, and how far its scores are from the products.

    Nothing is hidden, as where its recall was measured: who has had much is answered from all items. An item whose
    score is the last one's but for rounding is as good as that.
    """
    none: list[list[Any]] = [[] for _ in whom]
    found, whole = (encoders.recommend(whom, FOUND, times=times, seen=none, exact=exact) for exact in (False, True))
    shares, apart = [], 0.0
    for query, mine, best in zip(encoders.user(whom, times), found, whole, strict=True):
        scores = np.array([score for _, score in mine])
        if mine:
            products = encoders.item([item for item, _ in mine]) @ query
            apart = max(apart, float(np.max(np.abs(scores - products) / np.maximum(1.0, np.abs(products)))))
        if best:
            last = best[-1][1]
            shares.append(min(1.0, float((scores >= last - 1e-6 * max(1.0, abs(last))).sum()) / len(best)))
    return float(np.mean(shares)), float(np.std(shares) / len(shares) ** 0.5), apart


def _timed(ask: Callable[[int], object], count: int, most_s: float = DEADLINE_S) -> list[float]:
    taken, end = list[float](), time.perf_counter() + most_s
    while len(taken) < TIMES and (not taken or time.perf_counter() < end):
        began = time.perf_counter()
        ask(count)
        taken.append((time.perf_counter() - began) * 1000)
    return [float(np.median(taken)), float(np.quantile(taken, 0.99))]


if __name__ == "__main__":
    main()
