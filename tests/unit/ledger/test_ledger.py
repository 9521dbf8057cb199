"""The ledger counts what was consumed, not what should have been; a lost or repeated sample is named."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rtrain
from rtrain import cli
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored
from rtrain.data import reader
from rtrain.data.columns import Columns
from rtrain.errors import CheckpointError, RunFailed
from rtrain.ledger.proof import account, lost_beside, prove
from rtrain.ledger.record import Ledger
from rtrain.ledger.samples import Samples, digest_of_range
from rtrain.run import Run
from rtrain.training.world import join, leave
from tests.unit.training.jobs import At, job, train

shares = st.lists(st.lists(st.integers(0, 60) | st.integers(2**32 - 2, 2**32 + 2), max_size=40), max_size=6)


@given(shares)
def test_a_multiset_is_a_counter(parts: list[list[int]]) -> None:
    merged, added, counter = Samples(), Samples(), Counter[int]()
    for part in parts:
        one = Samples()
        one.add(np.array(part, dtype=np.int64))
        merged.merge(Samples.from_bytes(one.to_bytes(), one.digest))
        added.add(np.array(part, dtype=np.int64))
        counter.update(part)
    everything = range(0, 50)
    for found in (merged, added):
        assert found.count == counter.total()
        assert set(found.repeated) == {n for n, times in counter.items() if times > 1}
        assert set(found.missing(everything)) == set(everything) - set(counter)
        assert set(found.foreign(everything)) == set(counter) - set(everything)
        assert found.levels == max(counter.values(), default=0)
        assert found.digest == merged.digest == found.recomputed_digest()


@given(st.permutations(range(100, 130)), st.integers(0, 29))
def test_the_hash_knows_no_order_and_sees_one_sample(order: list[int], which: int) -> None:
    found = Samples()
    found.add(np.array(order))
    assert found.digest == digest_of_range(range(100, 130)) == digest_of_range(range(100, 130), chunk=7)
    other = Samples()
    other.add(np.array([*order[:which], 99, *order[which + 1 :]]))
    assert other.count == found.count
    assert other.digest != found.digest


def test_a_whole_epoch_takes_bytes_and_half_of_one_a_bit_a_sample() -> None:
    whole, half = Samples(), Samples()
    shuffled = np.random.default_rng(0).permutation(1_000_000)
    whole.add(shuffled)
    half.add(shuffled[:500_000])
    assert sum(map(len, whole.to_bytes())) < 1_000
    assert sum(map(len, half.to_bytes())) < -(-1_000_000 // 65_536) * 8192 + 1000


def test_padding_and_ranks_that_share_a_replica_count_for_nothing() -> None:
    counting, beside = Ledger(), Ledger(counts=False)
    join(gpu=False, timeout_s=60)
    for ledger in (counting, beside):
        ledger.record(0, torch.tensor([3, 1, -1, -1]))
        ledger.gather()
    leave()
    assert counting.total["consumed"][0].count == 2
    assert beside.total["consumed"] == {}


def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[Any, str]:
    monkeypatch.setattr("sys.argv", ["rtrain", "ledger", *words])
    with pytest.raises(SystemExit) as ended:
        cli.console()
    return ended.value.code, capsys.readouterr().out


def test_a_run_that_died_again_and_again_is_proved(
    tiny: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (9, 12, 23):
        with pytest.raises(RunFailed):
            job(tiny, At(step))
    train(tiny)
    rows = tiny.data.open().rows("train")
    code, out = command(capsys, monkeypatch, tiny.folder, "--verify", "--json")
    said = json.loads(out)
    assert (code, said["holds"], said["samples_lost"], said["samples_repeated"]) == (0, True, 0, 0)
    assert (said["samples"], said["attempt"]) == (3 * rows, 4)
    # The hash is of the data's numbers alone, so an epoch has the same in any order and any run.
    assert {(e["consumed"], e["hash"]) for e in said["epochs"]} == {
        (rows, f"{digest_of_range(tiny.data.open().numbers('train')):032x}")
    }
    assert command(capsys, monkeypatch, tiny.folder, "--verify")[1].endswith("proved: no sample lost, none repeated\n")
    assert command(capsys, monkeypatch, tiny.folder)[0] == 0
    assert command(capsys, monkeypatch, tiny.storage)[0] == 2


def test_in_the_middle_of_an_epoch_it_is_held_against_the_cursor(tiny: Run) -> None:
    train(rtrain.override(tiny, {"duration.steps": 13}))
    first, second = account(tiny.folder, verify=True).epochs
    assert (first.complete, second.complete, second.verdict) == (
        True, False, "under way: none twice, as many as the cursor says",
    )  # fmt: skip
    assert second.consumed == Stored(CheckpointFolders(tiny.folder).of(13), 13).meta["state"]["cursor"]["sample"]


def test_other_samples_in_an_open_epoch_are_seen_beside_the_twin(tiny: Run) -> None:
    """As many as the cursor says, none twice: the ledger alone finds nothing wrong with them."""
    runs = [rtrain.override(tiny, {"name": f"seed-{seed}", "seed": seed, "duration.steps": 13}) for seed in (0, 1)]
    for run in runs:
        train(run)
    one, other = (Stored(CheckpointFolders(run.folder).of(13), 13) for run in runs)
    assert all(account(run.folder, verify=True).holds for run in runs)
    assert lost_beside(one, one) == 0
    lost = lost_beside(other, one)
    assert 0 < lost <= one.meta["state"]["cursor"]["sample"]
    assert lost == lost_beside(one, other), "both have as many"


@pytest.mark.parametrize(("step", "epoch"), [(2, 0), (12, 1)], ids=["complete", "open"])
def test_a_row_that_never_came_is_missing_in_an_epoch_that_ended_and_in_an_open_one(
    tiny: Run, monkeypatch: pytest.MonkeyPatch, step: int, epoch: int
) -> None:
    run, twin = (
        rtrain.override(tiny, {"name": name, "duration.steps": 13, "data.prefetch": 0, "evaluation.every.steps": 50})
        for name in ("mine", "twin")
    )
    job(twin)
    monkeypatch.setattr(Columns, "select", without_a_row(Columns.select, step))
    job(run)
    mine, theirs = (Stored(CheckpointFolders(r.folder).of(13), 13) for r in (run, twin))
    proofs = prove(mine, tiny.data.open().numbers("train"))
    assert [e.holds for e in proofs] == [e.epoch != epoch for e in proofs]
    found = proofs[epoch]
    assert (found.consumed, found.repeated, found.foreign) == (found.expected - 1, 0, 0)
    assert found.missing == (1 if found.complete else 0), "which rows an open epoch lacks, only the twin knows"
    assert (lost_beside(mine, theirs), lost_beside(theirs, mine)) == (1, 0)


def without_a_row(select: Callable[..., Columns], call: int) -> Callable[..., Columns]:
    """One batch lacks its first row."""
    calls = 0

    def selected(self: Columns, order: Any) -> Columns:
        nonlocal calls
        calls += 1
        return select(self, order[1:] if calls == call else order)

    return selected


def twice(select: Callable[..., Columns]) -> Callable[..., Columns]:
    """The second batch of each attempt has its first row twice, and its second row not at all."""
    calls = 0

    def selected(self: Columns, order: Any) -> Columns:
        nonlocal calls
        calls += 1
        if calls == 2:
            order = order.copy()
            order[1] = order[0]
        return select(self, order)

    return selected


def test_a_row_that_is_read_twice_instead_of_another_is_named(tiny: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Columns, "select", twice(Columns.select))
    job(rtrain.override(tiny, {"duration.epochs": 1, "data.prefetch": 0}))
    newest = max(CheckpointFolders(tiny.folder).committed())
    (found,) = prove(Stored(CheckpointFolders(tiny.folder).of(newest), newest), tiny.data.open().numbers("train"))
    assert (found.holds, found.missing, found.repeated, found.foreign) == (False, 1, 1, 0)
    assert found.verdict.startswith("WRONG: 1 missing, 1 repeated (such as ")
    assert found.consumed == found.expected, "a count alone does not see it"


@pytest.mark.parametrize(("by", "lost", "repeated"), [(7, 7, 0), (-7, 0, 7)])
def test_a_resume_at_a_wrong_place_is_caught(
    tiny: Run, monkeypatch: pytest.MonkeyPatch, by: int, lost: int, repeated: int
) -> None:
    run = rtrain.override(tiny, {"duration.epochs": 1, "data.prefetch": 0})
    with pytest.raises(RunFailed):
        job(run, At(8))
    made = reader.batches

    def shifted(*arguments: Any, cursor: Any, **options: Any) -> Any:
        if options.get("epochs") is None:  # of training, not of an evaluation
            cursor = type(cursor)(epoch=cursor.epoch, sample=cursor.sample + by)
        return made(*arguments, cursor=cursor, **options)

    monkeypatch.setattr(reader, "batches", shifted)
    job(run)
    (found,) = prove(*_last(run))
    assert (found.holds, found.missing, found.repeated) == (False, lost, repeated)


def _last(run: Run) -> tuple[Stored, range]:
    folders = CheckpointFolders(run.folder)
    step = max(folders.committed())
    return Stored(folders.of(step), step), run.data.open().numbers("train")


def test_a_ledger_that_was_altered_does_not_hold(tiny: Run) -> None:
    job(rtrain.override(tiny, {"duration.epochs": 1}))
    stored, data = _last(tiny)
    (said,) = stored.meta["ledger"]["consumed"].values()
    said["hash"] = f"{int(said['hash'], 16) ^ 1:032x}"
    (found,) = prove(stored, data)
    assert not found.holds
    assert found.verdict == "WRONG: the hash is not that of the samples"


def test_a_run_that_was_begun_without_a_ledger_goes_on_and_says_what_it_lacks(tiny: Run) -> None:
    with pytest.raises(RunFailed):
        job(tiny, At(8))
    _forget_ledger(tiny, 7)
    job(tiny)
    with pytest.raises(CheckpointError, match="its ledger begins at step 7; the steps before were taken by an rtrain"):
        prove(*_last(tiny))


def _forget_ledger(run: Run, step: int) -> None:
    import hashlib

    folder = Path(CheckpointFolders(run.folder).of(step).path)
    manifest_file = next(folder.glob("manifest*.json"))
    manifest = json.loads(manifest_file.read_text())
    del manifest["ledger"]
    content = json.dumps(manifest).encode()
    manifest_file.write_bytes(content)
    (folder / "COMMITTED").write_text(f"{hashlib.sha256(content).hexdigest()} {manifest_file.name}")
