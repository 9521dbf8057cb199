"""After training: baseline, export, the serving check, result.json and the report."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from rtrain.checkpoint.fence import Driver
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored
from rtrain.data.interactions import Dataset
from rtrain.data.split import Split
from rtrain.data.tokens import Tokens
from rtrain.errors import RunFailed
from rtrain.export.artifact import export
from rtrain.export.huggingface import export_decoder
from rtrain.launch.clock import WORKERS, Clock
from rtrain.launch.taking import RESULT, earlier_result
from rtrain.metrics.baseline import UserItemBias
from rtrain.metrics.state import Metric, Scored, evaluate
from rtrain.models.decoder import Decoder
from rtrain.report import write_report
from rtrain.run import Run
from rtrain.schema import Id
from rtrain.storage import Folder
from rtrain.tracking import mask_command
from rtrain.training.job import Outcome
from rtrain.training.records import PREDICTIONS
from rtrain.training.surroundings import commit_of

SAME = 1e-5
"""Largest difference between a served probability and the trainer's. Both sum the same float32
products, but in batches of other sizes and so in another order: some hundred roundings of 6e-8 in a
logit of a few units, seen here as 5e-7. A wrong weight, row or feature shows as 1e-3 and more."""
BASELINE_ROWS = 5_000_000
"""Training rows beyond which the bias baseline, computed in the driver's memory, is left out."""


def finish(
    run: Run, outcome: Outcome, *, driver: Driver, command: str, clock: Clock, say: Callable[[str], None]
) -> dict[str, Any]:
    """Hand the best checkpoint on, write result.json and report.html; returns the result.

    `clock`: of the whole run, stopped just now for its workers.

    Raises:
        Fenced: another driver has taken the run; what lies in its folder is that one's to write.
        RunFailed: the served answers differ from the trainer's.
    """
    folder, commit = Folder(run.folder), commit_of()
    dataset = run.data.open()
    ranked = dataset if isinstance(dataset, Dataset) else None
    baseline = bias_baseline(run, ranked, "test") if ranked else None
    baseline_valid = bias_baseline(run, ranked, "valid") if ranked else None
    if baseline:
        clock.lap("baseline")
    exported = None
    if run.handoff.export:
        say(f"exporting step {outcome.best_step}")
        stored = Stored(CheckpointFolders(run.folder).of(outcome.best_step), outcome.best_step)
        target = f"{folder.uri}/export"
        driver.check()
        if isinstance(run.model, Decoder):
            assert isinstance(run.data, Tokens), "Run refuses another pair"
            exported = export_decoder(run.model, stored, target, context=run.data.context, check=driver.check)
        else:
            assert ranked is not None
            exported = export(
                run.model, ranked.schema, stored, target, run=run.name, metrics=outcome.test, check=driver.check
            )
        clock.lap("export")
    served, difference = None, None
    if run.handoff.serve_check and exported and ranked:
        say(f"serving it on port {run.handoff.port} and comparing {run.handoff.rows} answers with the trainer's")
        difference = compare_served(run, exported, ranked)
        served = difference <= SAME
        clock.lap("serving check")
    monitor = run.evaluation.monitor
    # A start that only judged and handed on says of the training what the one before it knew.
    trained = outcome.examples_per_s > 0
    before = {} if trained else earlier_result(folder)
    result: dict[str, Any] = {
        "run": run.name,
        "test": outcome.test,
        "valid": outcome.valid,
        "baseline_auc": baseline.get("auc") if baseline else None,
        "baseline": baseline,
        "baseline_valid": baseline_valid,
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
        "timeline": timeline(clock, outcome.timeline),
        "breakdown": outcome.breakdown if trained else before.get("breakdown", {}),
        "examples_per_s": outcome.examples_per_s if trained else before.get("examples_per_s"),
        "peak_bytes_per_rank": outcome.peak_bytes_per_rank,
        "command": mask_command(command),
        "commit": commit,
        "seconds": round(clock.seconds, 1),
    }
    driver.check()
    folder.write_json(RESULT, result)
    driver.check()
    write_report(folder.uri)
    if served is False:
        raise RunFailed(
            f"run {run.name!r}: served answers differ from the trainer's by up to {difference:.2e} "
            f"(allowed: {SAME:g}). The export in {exported} must not be used"
        )
    return result


def timeline(clock: Clock, worker: Mapping[str, float]) -> dict[str, float]:
    """Seconds from the start of the run to its result, in order; together they are all of them.

    `worker`: what the workers' last attempt tells of its own. What it does not explain of the time in which there
    were workers is theirs too: their start and end, and attempts that failed.
    """
    parts: dict[str, float] = {}
    for name, seconds in clock.laps.items():
        if name == WORKERS:
            parts |= {name: max(0.0, seconds - sum(worker.values())), **worker}
        else:
            parts[name] = seconds
    return parts


def bias_baseline(run: Run, dataset: Dataset, split: Split) -> dict[str, float] | None:
    """The run's metrics for a model of user and item means alone; none where the schema has no such pair."""
    schema = dataset.schema
    items = [f.name for f in schema.ids if f.entity == "item" and type(f) is Id]
    if not schema.group or not items or schema.label.optional or dataset.rows("train") > BASELINE_ROWS:
        return None

    names = [schema.group, items[0], schema.label.name]
    known = dataset.rows("train")
    both = pa.concat_tables([dataset.raw(s, 0, dataset.rows(s)).select(names) for s in ("train", split)])
    users, item_ids = (_numbered(both[name]) for name in names[:2])
    labels = both[names[2]].cast(pa.float64()).to_numpy()
    bias = UserItemBias.fit(users[:known], item_ids[:known], labels[:known])
    scores = bias.predict(users[known:], item_ids[known:])
    scored = Scored.of_probabilities(scores, labels[known:], users[known:])
    metrics: tuple[Metric, ...] = run.metrics
    return evaluate(metrics, [metric.partial(scored) for metric in metrics])


def _numbered(column: pa.ChunkedArray) -> np.ndarray:
    """int64 [n]: the same number for the same value, whatever its type; a null is a value too."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    codes = column.dictionary_encode(null_encoding="encode").combine_chunks().indices
    numbers: np.ndarray = codes.to_numpy().astype(np.int64)
    return numbers


def compare_served(run: Run, exported: str, dataset: Dataset) -> float:
    """Largest difference between HTTP answers and the probabilities that the trainer recorded."""
    from rtrain.serving.app import deploy

    said = Folder(run.folder).read_json(PREDICTIONS)
    table = dataset.raw("test", 0, len(said["rows"])).select([f.name for f in dataset.schema.features])
    # Left out rather than null: a request knows no null list, and what is left out means the same.
    rows = [{k: v for k, v in row.items() if v is not None} for row in table.to_pylist()]
    served = deploy(exported, name=run.name, port=run.handoff.port)
    try:
        answers = served.predict_concurrently([rows[i : i + 16] for i in range(0, len(rows), 16)])
    finally:
        served.stop()
    flat = [p for answer in answers for p in answer]
    return float(np.max(np.abs(np.array(flat) - np.array(said["predictions"]))))
