"""Two stages in a process of their own, asked as clients will: python -m rtrain.release.pair < asked.json"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from typing import Any

import numpy as np

from rtrain import config
from rtrain.errors import RtrainError, one_line
from rtrain.export.artifact import modules_of, prepare
from rtrain.export.head import HEAD
from rtrain.process import apart_from_here
from rtrain.stages.config import TwoStages
from rtrain.storage import Folder

DEADLINE_S = 600.0
"""For loading both and answering."""
PATIENT_MS = 10_000.0
"""That the store has for many who ask at once, as nobody does who is served; of one its own time is taken."""
AT_ONCE, TIMED, DRAWN = 16, 100, 64
"""Who asks in one request; requests of one whose time is taken; who asks where nobody is given."""


@dataclass(frozen=True)
class Paired:
    """What was seen."""

    error: str = ""
    """Why they could not be loaded or asked; empty: they could."""
    load_s: float = 0.0
    lists: Sequence[Sequence[Any]] = ()
    """Of each who asked the items, best first."""
    without: int = 0
    """Requests of one for which the store of features said nothing in time."""
    latency_ms: Sequence[float] = field(default_factory=list)
    """Of one who asks, median and 99th percentile."""


def ask_both(stages: TwoStages, rows: Sequence[Mapping[str, Any]], k: int) -> Paired:
    """Load both and ask.

    Args:
        stages: with both exports.
        rows: `whom`, `seen` and `times` each, as `Finished.asked` gives them of a model that finds items; none: some
            whom it knows.
        k: items of each.
    """
    prepare(stages.ranker)
    told = config.to_dict(stages)
    # Of the stages' own classes, as filters, and of both models.
    folders = [Folder(uri) for uri in (stages.retriever, stages.ranker)]
    named = [told, *(folder.read_json(HEAD) for folder in folders if folder.exists(HEAD))]
    own = sorted({name for part in named for name in modules_of(part) if name in sys.modules})
    asked = {"stages": told, "rows": list(rows), "k": k, "modules": own}
    answer, error = apart_from_here("rtrain.release.pair", asked, DEADLINE_S)
    return Paired(error=error) if error else Paired(**answer)


def main() -> None:
    """What the process does."""
    asked = json.load(sys.stdin)
    try:
        for name in asked["modules"]:
            import_module(name)
        found = asyncio.run(_ask(config.from_dict(asked["stages"]), asked["rows"], asked["k"]))
    except RtrainError as error:
        found = Paired(error=one_line(error))
    print(json.dumps(asdict(found)))


async def _ask(stages: TwoStages, rows: list[dict[str, Any]], k: int) -> Paired:
    import torch

    from rtrain.stages.recommender import Recommender

    torch.set_num_threads(1)
    began = time.perf_counter()
    both = Recommender(replace(stages, timeout_ms=max(stages.timeout_ms, PATIENT_MS)))
    await both.start()
    load_s = time.perf_counter() - began
    if not rows:
        whom, times = both.encoders.some(DRAWN)
        rows = [{"whom": one, "seen": []} | ({"times": times[n]} if times else {}) for n, one in enumerate(whom)]
    lists, without = list[list[Any]](), 0

    async def asked(some: list[dict[str, Any]]) -> Any:
        times = [row["times"] for row in some] if both.encoders.timed else None
        seen = [row["seen"] for row in some]
        wanted = both.want([row["whom"] for row in some], k, times=times, seen=seen, unknown="popular")
        (answer,) = await both.answer([wanted])
        return answer

    for at in range(0, len(rows), AT_ONCE):
        answer = await asked(rows[at : at + AT_ONCE])
        if answer.problem:
            return Paired(error=answer.problem, load_s=load_s)
        lists += [[item for item, _ in of] for of in answer.lists]
    both.stages, taken = stages, []
    for row in rows[:TIMED]:
        began = time.perf_counter()
        without += bool((await asked([row])).without)
        taken.append(1e3 * (time.perf_counter() - began))
    return Paired("", load_s, lists, without, [float(np.median(taken)), float(np.quantile(taken, 0.99))])


if __name__ == "__main__":
    main()
