"""A rehearsal ends an epoch, and replaces its own kind alone."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rtrain
from recipes.dlrm_movielens import debug
from rtrain import config
from rtrain.data.cursor import batches_per_epoch, check_batches
from rtrain.duration import Duration
from rtrain.errors import ConfigError
from rtrain.rehearsal.chaos import Chaos, chaos
from rtrain.rehearsal.folders import MARK, ending_an_epoch, refuse_foreign, replace_earlier
from rtrain.run import Run
from rtrain.storage import Folder


@given(steps=st.integers(2, 50), batch=st.integers(1, 600), more=st.integers(1, 10**6), ranks=st.integers(1, 8))
def test_steps_that_end_no_epoch_are_taken_on_rows_of_which_they_end_one(
    steps: int, batch: int, more: int, ranks: int
) -> None:
    batch = max(batch, ranks)
    rows = steps * batch + more
    run = rtrain.override(debug(), {"duration.steps": steps, "global_batch": batch, "cluster.workers": ranks})
    cut = ending_an_epoch(run, rows)
    assert cut.data.train_rows is not None and cut.data.train_rows < rows
    check_batches(cut.data.train_rows, batch, 0, ranks)
    an_epoch = batches_per_epoch(cut.data.train_rows, batch)
    assert an_epoch < steps == cut.total_steps(cut.data.train_rows), "one ends, another is begun, no step is lacking"
    assert ending_an_epoch(cut, cut.data.train_rows) == cut


def test_a_run_that_ends_an_epoch_is_rehearsed_as_it_is() -> None:
    for changes in ({"duration.steps": 20}, {"duration": Duration(epochs=1)}):
        run = rtrain.override(debug(), changes)
        assert ending_an_epoch(run, 20 * run.global_batch) is run


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    storage = str(tmp_path / "runs") if request.param == "local" else f"memory://rehearsals/{tmp_path.name}"
    return rtrain.override(debug(), {"storage": storage})


def trained(run: Run) -> Folder:
    """What training leaves in a run's folder, as far as it matters here."""
    folder = Folder(run.folder)
    folder.write_json("run.json", config.to_dict(run))
    folder.child("checkpoints").child("step-00000007").write("COMMITTED", b"")
    return folder


def test_an_earlier_rehearsal_is_replaced(run: Run) -> None:
    replace_earlier(run)
    trained(run)
    other = rtrain.override(run, {"duration.steps": 21})
    replace_earlier(other)
    folder = Folder(run.folder)
    assert folder.names() == [MARK]
    assert folder.read_json(MARK) == json.loads(json.dumps(config.to_dict(other)))
    replace_earlier(run)  # one that did not come as far as run.json
    assert trained(run).names() == sorted([MARK, "run.json", "checkpoints"])
    refuse_foreign(run)


def test_a_run_of_the_users_is_refused_and_stays(run: Run) -> None:
    folder = trained(run)
    before = folder.names()
    with pytest.raises(ConfigError, match=r"is where a rehearsal goes, but what it holds is not one"):
        replace_earlier(run)
    assert folder.names() == before
    assert folder.child("checkpoints").child("step-00000007").names() == ["COMMITTED"]


def test_a_rehearsal_that_was_trained_on_is_the_users(run: Run) -> None:
    replace_earlier(run)
    folder = trained(rtrain.override(run, {"duration.steps": 40}))
    with pytest.raises(ConfigError, match="it is not replaced"):
        replace_earlier(run)
    assert folder.exists("checkpoints")


def test_chaos_refuses_before_anything_is_trained(tmp_path: Path) -> None:
    run = rtrain.override(debug(), {"storage": str(tmp_path)})
    trained(rtrain.override(run, {"name": f"{run.name}-chaos-hang"}))
    with pytest.raises(ConfigError, match=f"chaos: '{tmp_path}/{run.name}-chaos-hang' is where a rehearsal goes"):
        chaos(run, kinds=["exception", "hang"])
    assert [p.name for p in tmp_path.iterdir()] == [f"{run.name}-chaos-hang"]


@pytest.mark.parametrize(("epochs", "words"), [(0, "NO epoch of 80 rows ended"), (2, "epochs that ended: 2, of 80")])
def test_the_table_says_what_it_proves(epochs: int, words: str) -> None:
    assert words in str(Chaos(run="r", steps=20, rows=80, epochs=epochs, seed=0, failures=()))
