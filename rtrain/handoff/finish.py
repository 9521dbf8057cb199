"""After training: baseline, export, the serving check, result.json and the report."""

from collections.abc import Callable, Mapping
from typing import Any

from rtrain.checkpoint.fence import Driver
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored
from rtrain.errors import RunFailed
from rtrain.evaluation.baseline import of_baselines
from rtrain.evaluation.rows import TEST_ROWS, TestRows
from rtrain.export.artifact import apart_of
from rtrain.export.formats import FORMATS
from rtrain.export.head import HEAD
from rtrain.handoff.halved import halve
from rtrain.handoff.served import SAME, compare_served
from rtrain.launch.clock import WORKERS, Clock
from rtrain.launch.taking import RESULT, earlier_result
from rtrain.report import write_report
from rtrain.run import Run
from rtrain.storage import Folder
from rtrain.tracking import mask_command
from rtrain.training.code import code_of_recipe
from rtrain.training.job import Outcome


def finish(
    run: Run, outcome: Outcome, *, driver: Driver, command: str, clock: Clock, say: Callable[[str], None]
) -> dict[str, Any]:
    """Hand the best checkpoint on, write result.json and report.html; returns the result.

    `clock`: of the whole run, stopped just now for its workers.

    Raises:
        Fenced: another driver has taken the run; what lies in its folder is that one's to write.
        RunFailed: the served answers differ from the trainer's.
    """
    folder, commit = Folder(run.folder), code_of_recipe().short
    dataset = run.data.open()
    model = TestRows.read(folder.read(TEST_ROWS)) if folder.exists(TEST_ROWS) else {}
    baselines = of_baselines(run, dataset, model)
    first: Mapping[str, Any] = baselines[0] if baselines else {}
    if baselines:
        clock.lap("baseline")
    exported = None
    if run.handoff.export:
        say(f"exporting step {outcome.best_step}")
        stored = Stored(CheckpointFolders(run.folder).of(outcome.best_step), outcome.best_step)
        target = f"{folder.uri}/export"
        driver.check()
        exported = FORMATS[run.model.exported](run, stored, target, outcome.test, driver.check, dataset)
        if run.handoff.weights != "trained":
            halve(run, exported, dataset, driver.check)
        clock.lap("export")
    served, difference, allowed = None, None, SAME
    if run.handoff.serve_check and exported:
        say(f"serving it on port {run.handoff.port} and comparing {run.handoff.rows} answers with the trainer's")
        difference = compare_served(run, exported, dataset)
        allowed = SAME + apart_of(Folder(exported).read_json(HEAD))
        served = difference <= allowed
        clock.lap("serving check")
    monitor = run.evaluation.monitor
    # A start that only judged and handed on says of the training what the one before it knew.
    trained = outcome.examples_per_s > 0
    before = {} if trained else earlier_result(folder)
    result: dict[str, Any] = {
        "run": run.name,
        "test": outcome.test,
        "valid": outcome.valid,
        "baseline_auc": first.get("test", {}).get("auc"),
        "baseline": first.get("test"),
        "baseline_valid": first.get("valid"),
        "baseline_name": first.get("name"),
        "baselines": baselines,
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
            f"(allowed: {allowed:g}). The export in {exported} must not be used"
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
