"""A language model's export in half the bytes: written beside it, held against it on the test split, and taken where
that allows.

    "weights": {"kept": "bfloat16", "rows": 64, "bytes": [6400000, 3200000], "difference": 0.0004,
                "loss": [2.3104, 2.3105], "perplexity": [10.078, 10.079], "ms_token": [4.1, 2.6]}

Of each pair the first is of the weights as they were trained. What is kept so computes so, of who loads it.
`python -m rtrain.handoff.halved` is the process that asks both, for it may take what memory there is.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import exp, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file

from rtrain.errors import ConfigError, RtrainError, one_line
from rtrain.export.head import HEAD
from rtrain.export.huggingface import CONFIG, INDEX
from rtrain.export.weights import fetched, put, put_text, save
from rtrain.handoff.served import apart
from rtrain.process import apart_from_here
from rtrain.run import Run
from rtrain.scratch import Scratch
from rtrain.storage import Folder
from rtrain.training.records import PREDICTIONS

if TYPE_CHECKING:
    from rtrain.language.model import Language

DEADLINE_S = 1800.0
"""Of the process."""
SCORED_S = 300.0
"""Of scoring rows both ways, of which at least two are."""


def halve(run: Run, uri: str, dataset: Any, check: Callable[[], None]) -> None:
    """Keep the weights of a finished export as `run.handoff.weights` says.

    `check`: as `rtrain.export.artifact.export`.

    Raises:
        ConfigError: its loss on the test split would grow by more than `run.handoff.tolerance`, or it cannot be asked;
            the export is then as it was.
    """
    kept, folder = run.handoff.weights, Folder(uri)
    head = folder.read_json(HEAD)
    rows = [dataset.shards.sample(number).tolist() for number in Folder(run.folder).read_json(PREDICTIONS)["rows"]]
    with Scratch("halved") as scratch:
        sizes, renamed = _written(uri, head["files"], kept, scratch)
        told, error = apart_from_here(__name__, {"exports": [uri, str(scratch)], "rows": rows}, DEADLINE_S)
        if why := error or told["why"]:
            raise ConfigError(f"handoff.weights: {kept} could not be held against what was trained ({why})")
        stated = {"kept": kept, "bytes": sizes} | _judged(run, rows, told)
        files = {name: sha for name, sha in head["files"].items() if name not in renamed}
        for name in renamed.values():
            files |= put(folder, name, partial(shutil.move, scratch / name), check)
        texts = {name: (scratch / name).read_text() for name in (CONFIG, INDEX)}
    check()
    folder.discard(HEAD)  # these two have the names of before, and the head its sha256
    for name, text in texts.items():
        files |= put_text(folder, name, text)
    folder.write_json(HEAD, head | {"files": files, "weights": stated})
    for name in renamed:
        folder.discard(name)


def _written(uri: str, of: Mapping[str, str], kept: str, to: Path) -> tuple[list[int], dict[str, str]]:
    """All files of the export in another folder; the bytes of its weights, before and then, and by their names of
    before those that have others."""
    sizes, renamed = [0, 0], dict[str, str]()
    for name, local in fetched(uri, of):
        if not name.endswith(".safetensors"):
            shutil.copyfile(local, to / name)
            continue
        held = load_file(local)
        halved = {key: x.to(getattr(torch, kept)) for key, x in held.items()}
        renamed[name] = name.replace("model-", f"model-{kept}-")
        save(halved, to / renamed[name])
        for side, tensors in enumerate((held, halved)):
            sizes[side] += sum(x.nbytes for x in tensors.values())
    config, index = (json.loads((to / name).read_text()) for name in (CONFIG, INDEX))
    index["metadata"]["total_size"] = sizes[1]
    index["weight_map"] = {key: renamed[name] for key, name in index["weight_map"].items()}
    (to / CONFIG).write_text(json.dumps(config | {"dtype": kept}, indent=2))
    (to / INDEX).write_text(json.dumps(index, indent=1))
    return sizes, renamed


def _judged(run: Run, rows: Sequence[Sequence[int]], told: Mapping[str, Any]) -> dict[str, Any]:
    """What the head says of what both cost on the same rows.

    Raises:
        ConfigError: as `halve`.
    """
    kept, losses = run.handoff.weights, told["losses"]
    scored = len(losses[0])
    tokens = sum(len(row) - 1 for row in rows[:scored])
    was, now = (sum(of) / tokens for of in losses)
    if not isfinite(now):
        raise ConfigError(
            f"handoff.weights: {kept} makes losses that are no numbers (float16 holds up to 65,504). Weights stay as "
            "trained. Keep bfloat16"
        )
    if not now - was <= run.handoff.tolerance:
        raise ConfigError(
            f"handoff.weights: {kept} costs {now - was:.5f} of loss ({was:.5f} to {now:.5f}) on {scored:,} test rows, "
            f"and handoff.tolerance is {run.handoff.tolerance:g}. Weights stay as trained. Raise the tolerance, or "
            "keep them so"
        )
    found = {"rows": scored, "difference": apart(losses[1], losses[0]), "loss": [was, now]}
    return found | {"perplexity": [exp(was), exp(now)], "ms_token": told["ms_token"]}


def main() -> None:
    """What the process does."""
    asked = json.load(sys.stdin)
    try:
        found = {"why": "", **_asked(asked["exports"], asked["rows"])}
    except RtrainError as error:
        found = {"why": one_line(error)}
    print(json.dumps(found))


def _asked(exports: Sequence[str], rows: Sequence[list[int]]) -> dict[str, Any]:
    """Of each export the loss of each row, as an endpoint says it, and milliseconds of a token."""
    from rtrain.language.engine import Engine
    from rtrain.language.model import load
    from rtrain.language.sampling import Sampling

    torch.set_num_threads(1)
    engines = [Engine(load(export, device="cpu"), lanes=1) for export in exports]
    scored = Sampling(max_tokens=0, echo=True, logprobs=0)
    losses: tuple[list[float], ...] = ([], [])
    until = time.monotonic() + SCORED_S
    for number, row in enumerate(rows):
        for engine, found in zip(engines, losses, strict=True):
            said = engine.answer(row, scored).tokens
            found.append(-sum(token.logprob for token in said if token.logprob is not None))
        if number and time.monotonic() > until:
            break
    for engine in engines:
        engine.close()
    return {"losses": losses, "ms_token": _ms_of_token([engine.language for engine in engines], rows[0])}


@torch.inference_mode()
def _ms_of_token(models: Sequence["Language"], row: Sequence[int]) -> list[float]:
    """Milliseconds of a token behind half a row, one thread, medians; who is first changes from token to token."""
    from rtrain.language.lanes import Together

    half, taken = max(1, models[0].context // 2), tuple(list[float]() for _ in models)
    lanes = [Together(one.model, one.context, 1) for one in models]
    for one in lanes:
        one.join(0, list(row[:half]))
    for turn, token in enumerate(row[half : models[0].context]):
        for side in range(len(lanes)):
            side = (side + turn) % len(lanes)
            began = time.perf_counter()
            lanes[side].forward({0: [token]})
            taken[side].append((time.perf_counter() - began) * 1000)
    return [round(float(np.median(of or [0.0])), 4) for of in taken]


if __name__ == "__main__":
    main()
