"""After training: baseline, export, the serving check, result.json and the report."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from rtrain.checkpoint.format import Stored
from rtrain.checkpoint.store import CheckpointFolders, Folder
from rtrain.data.interactions import Dataset
from rtrain.data.split import Split
from rtrain.errors import RunFailed
from rtrain.export.artifact import export
from rtrain.metrics.baseline import UserItemBias
from rtrain.metrics.state import Scored, evaluate
from rtrain.report import write_report
from rtrain.run import Run
from rtrain.schema import Id
from rtrain.training.job import Outcome
from rtrain.training.records import PREDICTIONS
from rtrain.training.trackers import mask_command

RESULT = "result.json"
SAME = 1e-5
"""Largest difference between a served probability and the trainer's. Both sum the same float32
products, but in batches of other sizes and so in another order: some hundred roundings of 6e-8 in a
logit of a few units, seen here as 5e-7. A wrong weight, row or feature shows as 1e-3 and more."""
BASELINE_ROWS = 5_000_000
"""Training rows beyond which the bias baseline, computed in the driver's memory, is left out."""


def finish(run: Run, outcome: Outcome, *, command: str, began: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Hand the best checkpoint on, write result.json and report.html; returns the result.

    Raises:
        RunFailed: the served answers differ from the trainer's.
    """
    folder = Folder(run.folder)
    dataset = run.data.open()
    baseline = bias_baseline(run, dataset, "test")
    exported = None
    if run.handoff.export:
        say(f"exporting step {outcome.best_step}")
        stored = Stored(CheckpointFolders(run.folder).of(outcome.best_step), outcome.best_step)
        exported = export(
            run.model, run.data.schema, stored, f"{folder.uri}/export", run=run.name, metrics=outcome.test
        )
    served, difference = None, None
    if run.handoff.serve_check and exported:
        say(f"serving it on port {run.handoff.port} and comparing {run.handoff.rows} answers with the trainer's")
        difference = compare_served(run, exported, dataset)
        served = difference <= SAME
    monitor = run.evaluation.monitor
    result: dict[str, Any] = {
        "run": run.name,
        "test": outcome.test,
        "valid": outcome.valid,
        "baseline_auc": baseline.get("auc") if baseline else None,
        "baseline": baseline,
        "baseline_valid": bias_baseline(run, dataset, "valid"),
        "steps": outcome.steps,
        "best_step": outcome.best_step,
        "monitor": monitor,
        "stop": outcome.stop,
        "world_size": outcome.world_size,
        "attempts": outcome.attempts,
        "checkpoint": outcome.checkpoint,
        "export": exported,
        "served": served,
        "served_max_difference": difference,
        "report": f"{folder.uri}/report.html",
        "breakdown": outcome.breakdown,
        "examples_per_s": outcome.examples_per_s,
        "peak_bytes_per_rank": outcome.peak_bytes_per_rank,
        "command": mask_command(command),
        "seconds": round(time.time() - began, 1),
    }
    folder.write_json(RESULT, result)
    write_report(folder.uri)
    if served is False:
        raise RunFailed(
            f"run {run.name!r}: served answers differ from the trainer's by up to {difference:.2e} "
            f"(allowed: {SAME:g}). The export in {exported} must not be used"
        )
    return result


def bias_baseline(run: Run, dataset: Dataset, split: Split) -> dict[str, float] | None:
    """The run's metrics for a model of user and item means alone; none where the schema has no such pair."""
    schema = run.data.schema
    items = [f.name for f in schema.ids if f.entity == "item" and type(f) is Id]
    if not schema.group or not items or dataset.rows("train") > BASELINE_ROWS:
        return None

    def columns(which: Split) -> list[np.ndarray]:
        table = dataset.raw(which, 0, dataset.rows(which))
        names = (schema.group, items[0], schema.label.name)
        return [table[name].combine_chunks().to_numpy(zero_copy_only=False) for name in names]

    users, item_ids, labels = columns("train")
    bias = UserItemBias.fit(users, item_ids, labels)
    users, item_ids, labels = columns(split)
    scored = Scored(scores=bias.predict(users, item_ids), labels=labels.astype(np.float64), groups=users)
    return evaluate(run.metrics, [metric.partial(scored) for metric in run.metrics])


def compare_served(run: Run, exported: str, dataset: Dataset) -> float:
    """Largest difference between HTTP answers and the probabilities that the trainer recorded."""
    from rtrain.serving.app import deploy

    said = Folder(run.folder).read_json(PREDICTIONS)
    rows = dataset.raw("test", 0, len(said["rows"])).select([f.name for f in run.data.schema.features]).to_pylist()
    served = deploy(exported, name=run.name, port=run.handoff.port)
    try:
        answers = served.predict_concurrently([rows[i : i + 16] for i in range(0, len(rows), 16)])
    finally:
        served.stop()
    flat = [p for answer in answers for p in answer]
    return float(np.max(np.abs(np.array(flat) - np.array(said["predictions"]))))
