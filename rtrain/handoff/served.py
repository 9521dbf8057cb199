"""Whether a served export answers as the trainer did."""

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


def compare_served(run: Run, exported: str, dataset: Any) -> float:
    """Largest difference between HTTP answers and the predictions that the trainer recorded."""
    from rtrain.serving.app import deploy

    recorded = Folder(run.folder).read_json(PREDICTIONS)
    rows = rows_of(dataset.raw("test", 0, len(recorded["rows"])), dataset.schema)
    served = deploy(exported, name=run.name, port=run.handoff.port)
    try:
        answers = served.predict_concurrently([rows[i : i + 16] for i in range(0, len(rows), 16)])
    finally:
        served.stop()
    flat = [p for answer in answers for p in answer]
    wanted = np.array(recorded["predictions"])
    return float(np.max(np.abs(np.array(flat) - wanted) / np.maximum(1.0, np.abs(wanted))))
