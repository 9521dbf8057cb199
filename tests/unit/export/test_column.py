"""A teacher is trained and exported, writes its logits beside the rows, and a student learns from them alone."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain.data.interactions import Interactions
from rtrain.data.parquet import ParquetRows
from rtrain.duration import Duration
from rtrain.errors import ConfigError, DataError
from rtrain.export import column
from rtrain.export.artifact import Predictor
from rtrain.export.column import predict_column
from rtrain.export.request import json_schema
from rtrain.mesh import Parallel
from rtrain.metrics import LogLoss
from rtrain.models.dcnv2 import DCNv2
from rtrain.models.dlrm import DLRM
from rtrain.models.ensemble import Ensemble
from rtrain.models.mmoe import MMoE
from rtrain.models.ranking import RankingConfig
from rtrain.objectives.distilled import Distillation
from rtrain.optim import AdamW, RowWiseAdagrad
from rtrain.run import Evaluation, Run
from rtrain.schema import Dense, Id, Label, Schema
from tests.unit.training.jobs import train

ROWS, GROUP = 6000, 1700
SCHEMA = Schema(features=(Dense(name="x"), Id(name="item", rows=10), Id(name="word", vocabulary=("a", "b"))), time="at")
STUDENTS = replace(SCHEMA, label=Label(name="noise"), teacher="teacher_logit")


def run_of(name: str, folder: Path, source: Path, schema: Schema, model: RankingConfig) -> Run:
    return Run(
        name=name,
        model=model,
        data=Interactions(source=str(source), schema=schema),
        optim=AdamW(lr=1e-2),
        sparse_optim=RowWiseAdagrad(lr=0.05),
        parallel=Parallel(dense="ddp"),
        global_batch=128,
        duration=Duration(epochs=6),
        evaluation=Evaluation(monitor="log_loss", boosting_rows=0),
        metrics=(LogLoss(),),
        storage=str(folder / "runs"),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With rows of a planted rule, and beside it labels that are nothing but chance."""
    made = tmp_path_factory.mktemp("taught")
    draw = np.random.default_rng(0)
    x, item = draw.normal(size=ROWS), draw.integers(0, 10, ROWS)
    columns = {
        "x": x,
        "item": item,
        "word": pa.array(draw.choice(["a", "b", "c"], ROWS)).dictionary_encode(),
        "at": np.arange(ROWS),
        "label": (draw.random(ROWS) < 1 / (1 + np.exp(-(2 * x + np.where(item % 2, 1.5, -1.5))))).astype(int),
        "noise": draw.integers(0, 2, ROWS),
        "not read": [[n] for n in range(ROWS)],
    }
    pq.write_table(pa.table(columns), made / "rows.parquet", row_group_size=GROUP)
    return made


@pytest.fixture(scope="module")
def teacher(folder: Path) -> str:
    run = run_of("teacher", folder, folder / "rows.parquet", SCHEMA, DLRM(dim=8, bottom=(8,), top=(16,)))
    return str(train(run)["export"])


@pytest.fixture(scope="module")
def taught(folder: Path, teacher: str) -> Path:
    return Path(predict_column(teacher, str(folder / "rows.parquet"), str(folder / "taught.parquet")))


def test_the_column_is_what_the_export_answers_and_all_else_is_as_it_was(
    folder: Path, teacher: str, taught: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = pq.read_table(folder / "rows.parquet"), pq.read_table(taught)
    assert after.drop_columns(["teacher_logit"]).equals(before)
    assert after.schema.field("teacher_logit").type == pa.float32()
    features = before.select(["x", "item", "word"]).to_pylist()
    said = 1 / (1 + np.exp(-after["teacher_logit"].to_numpy().astype(np.float64)))
    assert np.abs(said - Predictor(teacher).predict(features)).max() < 1e-6  # float32 sums in batches of another size
    stored = pq.ParquetFile(taught).metadata
    assert [stored.row_group(n).num_rows for n in range(stored.num_row_groups)] == [GROUP, GROUP, GROUP, 900]
    assert sorted(path.name for path in folder.glob("*.parquet")) == ["rows.parquet", "taught.parquet"]
    # In batches that end within a row group, and read from a folder of files: the same.
    monkeypatch.setattr(column, "BATCH", 999)
    (folder / "parts").mkdir()
    for n, (start, stop) in enumerate([(0, 2000), (2000, ROWS)]):
        pq.write_table(before.slice(start, stop - start), folder / "parts" / f"{n}.parquet", row_group_size=1000)
    again = pq.read_table(predict_column(teacher, str(folder / "parts"), str(folder / "again" / "taught.parquet")))
    assert again.drop_columns(["teacher_logit"]).equals(before)
    apart = again["teacher_logit"].to_numpy() - after["teacher_logit"].to_numpy()
    assert np.abs(apart).max() < 1e-5


def test_one_row_group_is_read_at_a_time(
    folder: Path, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, asked = ParquetRows.read, []

    def watched(self: ParquetRows, start: int, stop: int, *rest: object) -> pa.Table:
        asked.append((start, stop))
        return read(self, start, stop, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ParquetRows, "read", watched)
    predict_column(teacher, str(folder / "rows.parquet"), str(tmp_path / "out.parquet"))
    ends = [*range(0, ROWS, GROUP), ROWS]
    assert asked == list(pairwise(ends))


def test_a_row_that_cannot_be_read_leaves_what_was_there(folder: Path, teacher: str, tmp_path: Path) -> None:
    rows = pq.read_table(folder / "rows.parquet").select(["x", "item", "word"]).slice(0, 3000)
    items = rows["item"].to_pylist()
    items[2950] = 10
    pq.write_table(rows.set_column(1, "item", pa.array(items)), tmp_path / "bad.parquet", row_group_size=1000)
    (tmp_path / "out.parquet").write_bytes(b"as it was")
    with pytest.raises(DataError) as caught:
        predict_column(teacher, str(tmp_path / "bad.parquet"), str(tmp_path / "out.parquet"))
    assert str(caught.value) == (
        "bad.parquet: feature 'item' has id 10 at row 2950, but table 'item' has rows=10 (valid 0..9)"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.parquet", "out.parquet"]
    assert (tmp_path / "out.parquet").read_bytes() == b"as it was"


def test_in_place_once_and_under_another_name_again(teacher: str, taught: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "rows.parquet")
    pq.write_table(pq.read_table(taught).slice(0, 50), path)
    with pytest.raises(DataError, match="there is a column 'teacher_logit' already. Give column= another name"):
        predict_column(teacher, path, path)
    assert predict_column(teacher, path, path, column="again") == path
    table = pq.read_table(path)
    assert np.abs(table["again"].to_numpy() - table["teacher_logit"].to_numpy()).max() < 1e-5


def test_to_another_storage_and_to_the_present_folder(
    teacher: str, taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = pq.read_table(taught).slice(0, 50)
    pq.write_table(wanted.drop_columns(["teacher_logit"]), "rows.parquet")
    for to in ("memory://taught/out.parquet", "out.parquet"):
        stored = ParquetRows(predict_column(teacher, "rows.parquet", to))
        found = stored.read(0, stored.rows)["teacher_logit"].to_numpy()
        assert np.abs(found - wanted["teacher_logit"].to_numpy()).max() < 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "rows.parquet"]


@pytest.mark.parametrize("to", ["here/", "here/rows", "parts/2.parquet"])
def test_a_place_that_is_none_for_the_result(to: str) -> None:
    with pytest.raises(DataError) as caught:
        predict_column("no export", "parts/", to)
    assert str(caught.value) == (
        f"{to}: the result is one file, not among the source's. Give another path, as taught.parquet"
    )


def test_several_labels_are_no_column(folder: Path) -> None:
    schema = replace(SCHEMA, more_labels=(Label(name="noise"),))
    run = run_of("two", folder, folder / "rows.parquet", schema, MMoE(dim=4, experts=1))
    export = train(replace(run, duration=Duration(steps=1)))["export"]
    with pytest.raises(ConfigError, match="it predicts label, noise, but a column holds one"):
        predict_column(export, str(folder / "rows.parquet"), str(folder / "none.parquet"))


@pytest.mark.parametrize("several", [False, True], ids=["alone", "ensemble"])
def test_a_student_learns_the_rule_from_the_teacher_alone(folder: Path, taught: Path, several: bool) -> None:
    """Its labels are chance: who learns from them, or from the wrong rows' logits, is as far from it as 0.5 is."""
    apart = {}
    for alpha in (0.0, 1.0):
        one = DCNv2(dim=8, layers=1, deep=(16,), distillation=Distillation(alpha=alpha))
        model = Ensemble(models=(one, replace(one, layers=2))) if several else one
        run = run_of(f"student-{alpha}-{several}", folder, taught, STUDENTS, model)
        predictor = Predictor(train(run)["export"])
        data = run.data.open()
        test = data.raw("test", 0, data.rows("test"))
        asked = test.select(["x", "item", "word"]).to_pylist()
        assert "teacher_logit" not in json_schema(predictor.schema)["properties"]
        said = 1 / (1 + np.exp(-test["teacher_logit"].to_numpy().astype(np.float64)))
        apart[alpha] = np.abs(predictor.predict(asked) - said).mean()
    assert apart[0.0] < 0.05 and apart[1.0] > 0.9 * np.abs(0.5 - said).mean(), apart
