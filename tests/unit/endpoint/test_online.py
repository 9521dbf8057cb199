"""A version that people click on less is seen in the event log, and one that is as good is not."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain.endpoint.canary import Limits
from rtrain.endpoint.online import Online
from rtrain.errors import ConfigError, DataError


def log(path: Path, rates: dict[int, float], sessions: int = 3000, seed: int = 0) -> str:
    """Sessions of ten impressions each, clicked at the rate of their version."""
    draw, rows = np.random.default_rng(seed), []
    for version, rate in rates.items():
        for session in range(sessions):
            for _ in range(10):
                rows.append((f"{version}-{session}", "impression", len(rows), str(version)))
                if draw.random() < rate:
                    rows.append((f"{version}-{session}", "click", len(rows), str(version)))
    names = ("session_id", "event", "timestamp", "version")
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), path / "log.parquet")
    return f"{path}/log.parquet"


def test_a_worse_rate_is_seen(tmp_path: Path) -> None:
    asked = Online(log=log(tmp_path, {1: 0.05, 2: 0.04}))
    said = asked.exceeded(2, 1)
    assert said.startswith("its ctr is 0.0") and "the champion's 0.0" in said and said.endswith("log.parquet"), said
    assert not asked.exceeded(1, 2), "the other way round it is better"
    assert not Online(log=asked.log, worse=0.5).exceeded(2, 1), "by half it may be worse"
    assert not asked.exceeded(3, 1) and not asked.exceeded(2, 7), "of one that the log does not have nothing is said"


def test_an_equal_rate_is_not(tmp_path: Path) -> None:
    for seed in range(5):
        assert not Online(log=log(tmp_path, {1: 0.05, 2: 0.05}, 1000, seed)).exceeded(2, 1)
    assert not Online(log=log(tmp_path, {1: 0.05, 2: 0.02}, 20)).exceeded(2, 1), "too little to tell"


def test_of_some_rates_less_is_better(tmp_path: Path) -> None:
    source = log(tmp_path, {1: 0.02, 2: 0.001})
    asked = Online(log=source, rate="exit_rate")
    assert asked.exceeded(2, 1).startswith("its exit_rate is ") and not asked.exceeded(1, 2)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Online.rate: there is no 'crt'; did you mean 'ctr'\?"):
        Online(log="x", rate="crt")
    with pytest.raises(ConfigError, match="Online.worse"):
        Online(log="x", worse=-1)
    with pytest.raises(DataError, match="no such"):
        Online(log=f"{tmp_path}/nothing.parquet").exceeded(2, 1)
    assert Limits(online=Online(log="x")).online
