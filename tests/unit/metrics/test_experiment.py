"""Groups of an experiment held against one another: how sure a difference of rates is, by simulation and on a log."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain.cli.console import _console
from rtrain.errors import ConfigError, DataError
from rtrain.evaluation.online import Columns, measure_online
from rtrain.evaluation.online.intervals import Moments, difference, wilson


def share(clicked: int, of: int) -> tuple[float, tuple[float, float]]:
    interval = wilson(Moments(of, clicked, of, clicked, clicked, of))
    assert interval is not None
    return clicked / of, interval


@pytest.mark.parametrize(("a", "b", "n", "m"), [(0.05, 0.08, 400, 300), (0.02, 0.02, 500, 500), (0.5, 0.3, 60, 90)])
def test_intervals_of_differences_hold_the_truth_as_often_as_they_say(a: float, b: float, n: int, m: int) -> None:
    draw, held = np.random.default_rng(0), 0
    for _ in range(2000):
        low, high = difference(share(int(draw.binomial(n, a)), n), share(int(draw.binomial(m, b)), m))
        held += low <= a - b <= high
    assert 1880 <= held <= 1940, held  # 1900 +- four standard errors


def test_newcombes_example() -> None:
    """56 of 70 against 48 of 80: method 10 of Newcombe (1998), table II."""
    assert np.allclose(difference(share(56, 70), share(48, 80)), (0.0524, 0.3339), atol=5e-5)
    low, high = difference(share(48, 80), share(56, 70))
    assert np.allclose((low, high), (-0.3339, -0.0524), atol=5e-5), "the other way round"


def write_log(folder: Path, rates: dict[str, float], sessions: int = 3000) -> str:
    draw, rows = np.random.default_rng(1), []
    for variant, rate in rates.items():
        for n in range(sessions):
            event = {"session_id": f"{variant}{n}", "variant": variant, "timestamp": n}
            rows.append(event | {"event": "impression"})
            if draw.random() < rate:
                rows.append(event | {"event": "click"})
    pq.write_table(pa.Table.from_pylist(rows), folder / "log.parquet")
    return f"{folder}/log.parquet"


def differences(found: dict[str, Any]) -> dict[str, Any]:
    return {group["by"]["variant"]: group.get("differences") for group in found["groups"]}


def test_groups_are_held_against_the_one_that_is_named(tmp_path: Path) -> None:
    log = write_log(tmp_path, {"old": 0.10, "new": 0.15, "same": 0.10})
    found = measure_online(log, Columns(by=("variant",)), against="old")
    held = differences(found)
    assert held["old"] is None and held["new"]["ctr"]["excludes_0"] and not held["same"]["ctr"]["excludes_0"]
    rates = {group["by"]["variant"]: group["ctr"] for group in found["groups"]}
    told, value = held["new"]["ctr"], rates["new"]["value"] - rates["old"]["value"]
    assert told["value"] == pytest.approx(value) and told["share"] == pytest.approx(value / rates["old"]["value"])
    assert told["low"] < value < told["high"] and told["low"] > 0.02 and told["high"] < 0.08
    assert "differences" not in json.dumps(measure_online(log, Columns(by=("variant",))))


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_log(tmp_path, {"1": 0.10, "2": 0.15})
    assert _console(["metrics", "online", log, "--by", "variant", "--against", "1"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("ctr, difference"))
    assert line.split()[2] == "2" and line.endswith("  told apart") and "+" in line


def test_what_cannot_be_held(tmp_path: Path) -> None:
    log = write_log(tmp_path, {"old": 0.1, "new": 0.1}, sessions=20)
    with pytest.raises(DataError, match=r"no event has variant = 'odl' \(--against\); did you mean 'old'"):
        measure_online(log, Columns(by=("variant",)), against="odl")
    with pytest.raises(ConfigError, match="a value of one column"):
        measure_online(log, against="old")
