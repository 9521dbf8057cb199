"""Who had which version is told by the log of decisions: as the routers chose, event by event."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain.cli.console import _console
from rtrain.endpoint.assigned import assigned_of
from rtrain.endpoint.canary import Canary
from rtrain.endpoint.state import STATE, State
from rtrain.errors import ConfigError, DataError, UserError
from rtrain.evaluation.online import Columns, measure_online
from rtrain.release.audit import AuditLog
from rtrain.storage import Folder
from tests.unit.endpoint.test_conductor import ONE, Written, begin

START = 1_800_000_000
AB = Canary(steps=(0.3,), seconds=0, answers=5, patience_s=10_000)
RATES = {"1": 0.1, "2": 0.4}


class Clock:
    """What time decisions are of."""

    now = START

    def __call__(self) -> str:
        return datetime.fromtimestamp(self.now, UTC).isoformat(timespec="seconds")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("rtrain.endpoint.state.stamp", clock)
    return clock


@pytest.fixture
def conductor(tmp_path: Path) -> Written:
    state = State(model="m", registry="sqlite:////nowhere/r.db", audit=f"{tmp_path}/audit", champion=ONE)
    Folder(str(tmp_path)).write_json(STATE, state.to_json())
    return Written(str(tmp_path))


def events(conductor: Written, clock: Clock, seconds: int, draw: np.random.Generator) -> list[dict[str, Any]]:
    """What users do from now on, with the version that a router gives each of them."""
    rows = []
    for _ in range(seconds):
        clock.now += 1
        for _ in range(20):
            user = f"u{draw.integers(300)}"
            version = conductor._routing().chosen(user).split("-")[1]
            event = {"session_id": f"{user} {clock.now // 100}", "user": user, "timestamp": clock.now, "had": version}
            rows.append(event | {"event": "impression"})
            if draw.random() < RATES[version]:
                rows.append(event | {"event": "click"})
    return rows


@pytest.fixture
def tried(conductor: Written, clock: Clock) -> list[dict[str, Any]]:
    """Before it, at 30 %, at 60 % by a person, and after it."""
    draw = np.random.default_rng(0)
    rows = events(conductor, clock, 49, draw)
    clock.now += 1  # of a second's events some would be of before a decision, some of after it
    begin(conductor, AB)
    rows += events(conductor, clock, 99, draw)
    clock.now += 1
    conductor.hold(0.6, "more of it", "me")
    rows += events(conductor, clock, 99, draw)
    clock.now += 1
    conductor.take_back("enough", "me")
    rows += events(conductor, clock, 50, draw)
    conductor.settle()
    return rows


def written(folder: Path, rows: list[dict[str, Any]], **columns: pa.Array) -> str:
    table = pa.Table.from_pylist(rows)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, values)
    pq.write_table(table, folder / "log.parquet")
    return f"{folder}/log.parquet"


@pytest.mark.parametrize("times", ["seconds", "text", "moments"])
def test_it_is_as_the_routers_chose(tried: list[dict[str, Any]], tmp_path: Path, times: str) -> None:
    assigned = assigned_of(AuditLog(f"{tmp_path}/audit"), "m", 2)
    shares = [(of.start - START, of.stop - START, of.share) for of in assigned.windows]
    assert shares == [(50, 150, 0.3), (150, 250, 0.6)] and (assigned.new, assigned.old) == ("2", "1")
    during = [row for row in tried if START + 50 < row["timestamp"] < START + 250]
    moments = [datetime.fromtimestamp(row["timestamp"], UTC) for row in during]
    columns = {
        "seconds": {}, "text": {"timestamp": pa.array([at.isoformat() for at in moments])},
        "moments": {"timestamp": pa.array(moments, pa.timestamp("us", "UTC"))},
    }[times]  # fmt: skip
    log = written(tmp_path, during, **columns)
    found = measure_online(log, Columns(unit="user"), assigned=assigned)
    wanted = measure_online(log, Columns(unit="user", by=("had",)), against="1")
    for group in (*found["groups"], *wanted["groups"]):
        group["by"] = list(group["by"].values())
    assert found["groups"] == wanted["groups"] and found["events"] == wanted["events"]
    assert found["groups"][1]["differences"]["ctr"]["excludes_0"]


def test_on_the_command_line(tried: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = written(tmp_path, tried)
    words = ["metrics", "online", log, "--unit", "user", "--assigned", "m:2", "--audit", f"{tmp_path}/audit"]
    assert _console(words) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("ctr, difference"))
    assert line.split()[2] == "2" and line.endswith("  told apart")
    during = sum(START + 50 <= row["timestamp"] < START + 250 for row in tried)
    found = measure_online(log, Columns(unit="user"), assigned=assigned_of(AuditLog(f"{tmp_path}/audit"), "m", 2))
    assert 0 < during == found["events"] < len(tried), "what is of another time is left out"


def test_one_that_goes_on_has_no_end(conductor: Written, clock: Clock, tmp_path: Path) -> None:
    begin(conductor, AB)
    conductor.settle()
    (window,) = assigned_of(AuditLog(f"{tmp_path}/audit"), "m", 2).windows
    assert (window.start, window.stop, window.share) == (START, float("inf"), 0.3)


def test_what_cannot_be_told(tried: list[dict[str, Any]], tmp_path: Path) -> None:
    log = AuditLog(f"{tmp_path}/audit")
    with pytest.raises(UserError, match="m:3: the log .* has no trial of it in which it had a share"):
        assigned_of(log, "m", 3)
    path, assigned = written(tmp_path, tried[:20]), assigned_of(log, "m", 2)
    with pytest.raises(DataError, match=rf"no event is of the time in which version 2 was tried, from {START + 50} to"):
        measure_online(path, Columns(unit="user"), assigned=assigned)
    with pytest.raises(ConfigError, match="--assigned: which column says who asked"):
        measure_online(path, assigned=assigned)
    with pytest.raises(ConfigError, match="--assigned: the two versions are the groups"):
        measure_online(path, Columns(unit="user", by=("had",)), assigned=assigned)
    with pytest.raises(ConfigError, match="--assigned: 'm' is no MODEL:VERSION"):
        _console(["metrics", "online", path, "--unit", "user", "--assigned", "m"])
    log.append("begin", "", {"endpoint": "m", "version": 4, "share": 0.5})
    with pytest.raises(UserError, match=r"m:4: entry \d+ of the log does not say beside which version"):
        assigned_of(log, "m", 4)
    twice = {"endpoint": "m", "version": 5, "share": 0.5, "champion": 1, "since": "2027-01-15T08:00:00+00:00"}
    for _ in range(2):
        log.append("begin", "", twice)
    with pytest.raises(UserError, match="m:5: it was tried twice at once"):
        assigned_of(log, "m", 5)
