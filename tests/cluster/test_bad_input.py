"""What the user must mend ends a run with one line, wherever it is found, and leaves nothing half-written."""

import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import rtrain
from rtrain.data import sources
from rtrain.errors import CheckpointError, ClusterError, DataError
from tests.cluster.conftest import history_of


@pytest.fixture
def rows() -> pa.Table:
    (file,) = Path(sources.get("ml-100k")).glob("*.parquet")
    return pq.read_table(file)


def replaced(rows: pa.Table, name: str, at: int, value: Any) -> pa.Table:
    mask = pa.array([i == at for i in range(rows.num_rows)])
    column = pc.if_else(mask, pa.scalar(value, rows.schema.field(name).type), rows[name])
    return rows.set_column(rows.schema.get_field_index(name), name, column)


@pytest.mark.parametrize("told", [True, False], ids=["by the footers", "by the row"])
def test_an_id_beyond_its_table(small_run: Any, joined_ray: None, rows: pa.Table, tmp_path: Path, told: bool) -> None:
    bad = replaced(rows, "item_id", 70_001, 39060)
    pq.write_table(bad, tmp_path / "bad.parquet", write_statistics=True if told else ["timestamp"])
    run = rtrain.override(small_run, {"data.source": str(tmp_path / "bad.parquet")})
    with pytest.raises(DataError) as raised:
        rtrain.train(run, quiet=True)
    said = str(raised.value)
    assert said.startswith("bad.parquet rows ")
    assert "feature 'item_id' has id 39060 at row 70001, but table 'item_id' has rows=1683 (valid 0..1682)" in said
    assert "\n" not in said
    assert not [line for line in history_of(run.folder) if line["kind"] == "train"]
    assert not (Path(run.folder) / "result.json").exists()


@pytest.mark.slow
def test_labels_that_are_not_binary(small_run: Any, joined_ray: None, rows: pa.Table, tmp_path: Path) -> None:
    pq.write_table(replaced(rows, "label", 5, 0.5), tmp_path / "bad.parquet")
    run = rtrain.override(small_run, {"data.source": str(tmp_path / "bad.parquet")})
    with pytest.raises(DataError, match=r"label 'label'.*0\.5"):
        rtrain.train(run, quiet=True)


def test_a_busy_port_is_told_before_the_training(small_run: Any, joined_ray: None) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = rtrain.override(small_run, {"handoff.serve_check": True, "handoff.port": port})
        with pytest.raises(ClusterError, match=rf"handoff.port: {port} on 127.0.0.1 cannot be used .*--handoff.port"):
            rtrain.train(run, quiet=True)
    assert not history_of(run.folder)


def test_a_full_disk(small_run: Any, joined_ray: None, tiny_disk: Path) -> None:
    run = rtrain.override(small_run, {"storage": str(tiny_disk), "tracking.to": ""})
    with pytest.raises(CheckpointError, match=r"step \d+: .*No space left on device.*[Ff]ree space"):
        rtrain.train(run, quiet=True)
    # What was committed before stays whole; what did not fit is not there for a reader.
    from rtrain.checkpoint.folders import CheckpointFolders
    from rtrain.checkpoint.format import Stored

    folders = CheckpointFolders(run.folder)
    for step in folders.committed():
        Stored(folders.of(step), step).verify()
    assert not (tiny_disk / run.name / "result.json").exists()
