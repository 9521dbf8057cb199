"""Whether a served export answers as the trainer did."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from rtrain.export.request import rows_of
from rtrain.run import Run
from rtrain.storage import Folder
from rtrain.training.records import PREDICTIONS

SAME = 1e-5
"""Largest difference between a served probability and the trainer's. Both sum the same float32
products, but in batches of other sizes and so in another order: some hundred roundings of 6e-8 in a
logit of a few units, seen here as 5e-7. A wrong weight, row or feature shows as 1e-3 and more.
A number beyond 1 differs by its share of it."""
AT_ONCE = 16
"""Requests under way, fewer than may wait for a language model."""


def compare_served(run: Run, exported: str, dataset: Any) -> float:
    """Largest difference between HTTP answers and the predictions that the trainer recorded."""
    recorded = Folder(run.folder).read_json(PREDICTIONS)
    if run.model.exported == "hugging face":
        return _tokens_served(run, exported, recorded, dataset)
    rows = rows_of(dataset.raw("test", 0, len(recorded["rows"])), dataset.schema)
    served = _deployed(run, exported)
    try:
        answers = served.predict_concurrently([rows[i : i + 16] for i in range(0, len(rows), 16)])
    finally:
        served.stop()
    return apart([p for answer in answers for p in answer], recorded["predictions"])


def _deployed(run: Run, exported: str) -> Any:
    """Beside all else that the cluster serves, by a name and a path that are only this check's."""
    from rtrain.serving.app import deploy

    name = f"check-{run.name}"
    return deploy(exported, name=name, prefix=f"/{name}", port=run.handoff.port, replace=True)


def _tokens_served(run: Run, exported: str, recorded: Mapping[str, Any], dataset: Any) -> float:
    """The same of a language model: the losses of rows, of what it says of their tokens."""
    rows = [dataset.shards.sample(number).tolist() for number in recorded["rows"]]
    served = _deployed(run, exported)
    try:
        with ThreadPoolExecutor(max_workers=min(AT_ONCE, len(rows))) as pool:
            losses = list(pool.map(served.loss, rows))
    finally:
        served.stop()
    return apart(losses, recorded["predictions"])


def apart(answers: Sequence[Any], wanted: Sequence[Any]) -> float:
    """Largest difference of answers from those that are wanted, of a number beyond 1 by its share."""
    found, of = np.array(answers), np.array(wanted)
    return float(np.max(np.abs(found - of) / np.maximum(1.0, np.abs(of))))
