"""After training: baseline, export, the serving check, result.json and the report."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rtrain.checkpoint.fence import Driver
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored
from rtrain.data.interactions import Dataset
from rtrain.data.samples import Samples
from rtrain.data.split import Split
from rtrain.data.tokens import Tokens
from rtrain.errors import RunFailed
from rtrain.export.artifact import export
from rtrain.export.huggingface import export_decoder
from rtrain.launch.clock import WORKERS, Clock
from rtrain.launch.taking import RESULT, earlier_result
from rtrain.metrics.state import Metric, evaluate
from rtrain.models.decoder import Decoder
from rtrain.models.ranking import RankingConfig
from rtrain.report import write_report
from rtrain.run import Run
from rtrain.storage import Folder
from rtrain.tracking import mask_command
from rtrain.training.job import Outcome
from rtrain.training.records import PREDICTIONS
from rtrain.training.surroundings import commit_of

SAME = 1e-5
"""Largest difference between a served probability and the trainer's. Both sum the same float32
products, but in batches of other sizes and so in another order: some hundred roundings of 6e-8 in a
logit of a few units, seen here as 5e-7. A wrong weight, row or feature shows as 1e-3 and more."""


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
    baseline, baseline_valid = (_of_baseline(run, dataset, split) for split in ("test", "valid"))
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
            assert ranked is not None and isinstance(run.model, RankingConfig), "Run refuses another"
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
        "baseline_name": dataset.baseline_name if baseline else None,
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


def _of_baseline(run: Run, dataset: Samples[Any], split: Split) -> dict[str, float] | None:
    """The run's metrics of what the data's own baseline says; none where they have none."""
    metrics: tuple[Metric, ...] = run.metrics
    scored = dataset.baseline(split, metrics)
    return evaluate(metrics, [metric.partial(scored) for metric in metrics]) if scored else None


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
