"""A job that dies anywhere goes on as if nothing had happened; what it cannot go on from, it says."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import rtrain
from rtrain.checkpoint import fence
from rtrain.checkpoint.fence import Fenced
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored
from rtrain.duration import Duration
from rtrain.errors import CheckpointError, RunFailed
from rtrain.export import weights
from rtrain.launch import local
from rtrain.objectives.pointwise import Pointwise
from rtrain.run import Run
from rtrain.storage import Folder
from rtrain.training import job as training_job
from rtrain.training.job import Outcome
from rtrain.training.replica import Replica
from tests.unit.training.jobs import At, job, lines, losses, train


def named(run: Run, name: str, **changes: object) -> Run:
    return rtrain.override(run, {"name": name, **{k.replace("__", "."): v for k, v in changes.items()}})


@pytest.mark.parametrize("dense", ["ddp", "zero1", "zero3"])
def test_a_job_that_dies_again_and_again_ends_the_same(tiny: Run, dense: str) -> None:
    # Points every 4 steps, checkpoints every 7, scores every 5: a resume begins between two points of the curve.
    layout = {"parallel__dense": "ddp"} if dense == "ddp" else {"parallel__dense": "zero"}
    stage = int(dense[-1]) if dense != "ddp" else 1
    run = named(tiny, "broken", log_every_steps=4, parallel__zero_stage=stage, **layout)
    straight = named(run, "straight")
    expected = job(straight)
    for step in (1, 9, 10, 28):
        with pytest.raises(RunFailed, match=rf"^rank 0 on \S+, step {step}: RuntimeError$"):
            job(run, At(step))
    found = job(run)
    assert found.attempts == 5
    assert losses(run) == losses(straight)
    assert list(losses(run)) == [4, 8, 12, 16, 20, 24, 28, 30]
    assert [{**x, "at": 0} for x in lines(run, "valid")] == [{**x, "at": 0} for x in lines(straight, "valid")]
    assert (found.test, found.valid, found.best_step) == (expected.test, expected.valid, expected.best_step)


def test_an_early_stop_is_the_same_after_a_resume_and_more_patience_goes_on(tiny: Run) -> None:
    impatient = named(tiny, "straight", evaluation__patience=1, duration=Duration(epochs=6), checkpoint__keep=9)
    stopped = job(impatient)
    assert stopped.stop == "no better auc in 1 evaluations"
    assert stopped.steps < 60

    again = named(impatient, "broken")
    with pytest.raises(RunFailed):
        job(again, At(stopped.steps))  # after the last step, before its evaluation
    resumed = job(again)
    assert (resumed.steps, resumed.stop, resumed.best_step) == (stopped.steps, stopped.stop, stopped.best_step)
    assert losses(again) == losses(impatient)

    finished = job(impatient)
    assert (finished.steps, finished.stop, finished.test) == (stopped.steps, stopped.stop, stopped.test)

    patient = named(impatient, "patient", evaluation__patience=None)
    job(patient)
    on = job(rtrain.override(impatient, {"evaluation.patience": None}))
    assert (on.steps, on.stop) == (60, "")
    assert losses(impatient) == losses(patient)
    assert lines(impatient, "valid") == lines(patient, "valid")


def test_when_the_best_checkpoint_is_gone_the_next_score_is_the_best(tiny: Run) -> None:
    run = named(tiny, "tiny", checkpoint__keep=9)
    with pytest.raises(RunFailed):
        job(run, At(23))
    folders = CheckpointFolders(run.folder)
    best_of = {s: Stored(folders.of(s), s).meta["state"]["best_step"] for s in folders.committed()}
    # As if the newest ones were damaged, and the best of the one before them had been pruned already.
    last = max(s for s, best in best_of.items() if best not in (None, s))
    for step in folders.committed():
        if step > last or step == best_of[last]:
            shutil.rmtree(folders.of(step).path)
    found = job(run)
    said = [x["text"] for x in lines(run, "event")]
    assert any(f"checkpoint step {best_of[last]}: the best one so far is gone" in text for text in said)
    later = {x["step"]: x["auc"] for x in lines(run, "valid") if x["step"] > last}
    assert found.best_step == max(later, key=lambda s: (later[s], -s))
    assert found.valid["auc"] == max(later.values())
    assert found.best_step in folders.committed()


def test_a_full_disk_is_what_is_told_even_when_nothing_more_can_be_written(tiny: Run, tiny_disk: Path) -> None:
    run = rtrain.override(tiny, {"storage": str(tiny_disk), "duration.epochs": 1, "model.dim": 8})

    def fill() -> None:
        with pytest.raises(OSError, match="No space left"), open(tiny_disk / "others", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    with pytest.raises(CheckpointError, match=r"^rank 0 on \S+, step \d+: .*[Nn]o space left on device.*start"):
        job(run, At(3, fill))
    (tiny_disk / "others").unlink()
    assert job(run).steps == 10
    straight = named(tiny, "straight", duration=Duration(epochs=1), model__dim=8)
    job(straight)
    assert losses(run) == losses(straight)


def test_probabilities_that_are_no_numbers_are_no_result(tiny: Run) -> None:
    # The one step's loss is fine; what it makes of the tables is not.
    run = rtrain.override(tiny, {"duration.steps": 1, "sparse_optim.lr": 1e38})
    with pytest.raises(RunFailed, match=r"step 1: the model gives \d+ rows a logit that is not a finite number"):
        job(run)
    assert CheckpointFolders(run.folder).committed() == []


def test_a_loss_that_is_no_number_is_found_before_a_checkpoint_and_not_only_at_the_next_point(tiny: Run) -> None:
    run = rtrain.override(
        tiny, {"log_every_steps": 100, "evaluation.every.steps": 100, "sparse_optim.lr": 1e30, "optim.lr": 1e20}
    )
    with pytest.raises(RunFailed, match=r"step 7: the loss is nan at step 7\. Lower optim.lr"):
        job(run)
    assert CheckpointFolders(run.folder).committed() == []


def test_a_step_that_deepspeed_leaves_out_ends_the_run(tiny: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss may be finite when its gradients are not; training on would learn nothing, and say nothing."""
    plain = Pointwise.row_losses
    monkeypatch.setattr(Pointwise, "row_losses", lambda self, z, y: plain(self, z, y) + (0 * z).sqrt())
    run, kept = rtrain.override(tiny, {"parallel.dense": "zero", "parallel.zero_stage": 1}), []

    class Keep(Replica):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options)
            kept.append(self)

    monkeypatch.setattr("rtrain.training.job.Replica", Keep)
    with pytest.raises(RunFailed, match=r"the gradients are not finite at step 1 or before, though the loss is"):
        job(run)
    assert CheckpointFolders(tiny.folder).committed() == []
    assert kept[0].skipped and all(p.isfinite().all() for p in kept[0].tables.parameters()), "tables leave it out too"


@pytest.mark.parametrize("seed", [20261123, 2**62])
def test_any_seed_will_do(tiny: Run, seed: int) -> None:
    run = rtrain.override(tiny, {"duration.steps": 2, "seed": seed})
    job(run)
    other = named(run, "other", seed=seed + 1)
    job(other)
    assert losses(run) != losses(other)


def test_a_job_leaves_no_process_group_and_no_random_state_that_matters(tiny: Run) -> None:
    torch.manual_seed(5)
    first = job(named(tiny, "first", duration=Duration(steps=2)))
    torch.manual_seed(6)
    second = job(named(tiny, "second", duration=Duration(steps=2)))
    assert not torch.distributed.is_initialized()
    assert first.test == second.test


@pytest.mark.parametrize(("background", "noticed"), [(False, 10), (True, 14)])
def test_an_attempt_that_was_overtaken_stops_and_leaves_the_curves_alone(
    tiny: Run, background: bool, noticed: int
) -> None:
    tiny = named(tiny, "tiny", checkpoint__background=background)
    winner: list[object] = []

    def overtake() -> None:
        while 7 not in CheckpointFolders(tiny.folder).committed():
            time.sleep(0.01)  # a thread is writing it
        fence.begin(CheckpointFolders(tiny.folder))
        winner.append(lines(tiny, "train")[-1]["step"])

    with pytest.raises(
        Fenced, match=rf"^rank 0 on \S+, step {noticed}: run .*attempt 2 .* has taken it over from attempt 1"
    ):
        job(tiny, At(9, overtake))
    assert lines(tiny, "train")[-1]["step"] == winner[0]
    assert max(CheckpointFolders(tiny.folder).committed()) == 7
    assert job(tiny).attempts == 3


def test_an_attempt_that_is_overtaken_while_it_starts_leaves_the_placement_alone(
    tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = training_job.Replica

    def overtaken(*arguments: Any, **options: Any) -> Any:
        fence.take(CheckpointFolders(tiny.folder))
        return build(*arguments, **options)

    monkeypatch.setattr(training_job, "Replica", overtaken)
    with pytest.raises(Fenced, match="a newer start"):
        job(tiny)
    assert not (Path(tiny.folder) / "placement.json").exists()
    assert not (Path(tiny.folder) / "history.jsonl").exists()


def test_a_driver_that_is_overtaken_in_the_middle_of_its_export_leaves_the_others(
    tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of an export have plain names, so each one asks whose the folder is."""
    short = rtrain.override(tiny, {"duration.steps": 3})
    folder, packs = Folder(short.folder), weights._packs

    def overtaken(stored: Any) -> Any:
        fence.take(CheckpointFolders(short.folder))
        folder.child("export").write_json("export.json", {"of": "the other driver"})
        yield from packs(stored)

    monkeypatch.setattr(weights, "_packs", overtaken)
    with pytest.raises(Fenced):
        train(short)
    assert folder.child("export").read_json("export.json") == {"of": "the other driver"}
    assert folder.child("export").names() == ["export.json"]
    assert not folder.exists("result.json")


def test_a_driver_that_was_overtaken_hands_nothing_on(tiny: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    inline = local.train_inline

    def overtaken(run: Run, driver: str, callbacks: object) -> Outcome:
        outcome = inline(run, driver)
        fence.take(CheckpointFolders(run.folder))
        return outcome

    monkeypatch.setattr(local, "train_inline", overtaken)
    with pytest.raises(Fenced, match="a newer start"):
        train(tiny)
    left = {path.name for path in Path(tiny.folder).iterdir()}
    assert "run.json" in left
    assert not left & {"result.json", "export", "report.html"}


def test_a_worker_that_an_overtaken_driver_restarts_is_refused(tiny: Run) -> None:
    folders = CheckpointFolders(tiny.folder)
    old, new = fence.take(folders), fence.take(folders)
    with pytest.raises(Fenced, match=r"rank 0 on \S+, step 0: run .* a newer start .* has taken it over"):
        local.train_inline(tiny, old.token)
    assert local.train_inline(tiny, new.token).attempts == 1


def test_workers_that_torchrun_starts_once_more_belong_to_the_same_driver(
    tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = CheckpointFolders(tiny.folder)
    with pytest.raises(Fenced, match="started anew"):
        fence.take(folders, again="of a run that was moved aside")

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert local.Agent().driver == "", "without torchrun nothing is kept"
    where = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    for name, value in where.items():
        monkeypatch.setenv(name, value)
    assert local.Agent().driver == ""
    first = fence.take(folders)
    local.Agent().keep(first.token)
    again = fence.take(folders, again=local.Agent().driver)
    assert again.token == first.token
    again.check()

    fence.take(folders)
    with pytest.raises(Fenced, match="a newer start"):
        fence.take(folders, again=local.Agent().driver)


def test_a_checkpoint_of_another_model_is_refused_by_the_tensors_that_differ(tiny: Run) -> None:
    job(named(tiny, "tiny", duration=Duration(steps=3)))
    with pytest.raises(CheckpointError, match=r"it is of another model: model\.\S+ \[\d+, 16\] there, .*and \d+ more"):
        job(named(tiny, "tiny", duration=Duration(steps=4), model__dim=8))
