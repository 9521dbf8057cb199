"""Tables that no replica has: answers are those of whole ones, and a shard that dies costs no wrong answer."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import rtrain
from recipes.dlrm_movielens import debug
from rtrain.errors import ConfigError
from rtrain.export.artifact import Predictor
from rtrain.export.request import rows_of
from rtrain.handoff.served import SAME, apart
from rtrain.serving.app import application_of
from rtrain.serving.scale import Scale
from tests.cluster.test_retriever import exported


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    """An export, and rows of its test split."""
    storage = str(tmp_path_factory.mktemp("shards"))
    changes = {"storage": storage, "duration.steps": 5, "handoff.serve_check": "false", "tracking.to": ()}
    run = rtrain.override(debug(), changes)
    result = rtrain.train(run, launcher="inline", quiet=True)
    assert result is not None and result.export is not None
    dataset = run.data.open()
    return result.export, rows_of(dataset.raw("test", 0, 200), dataset.schema)


def of_shards() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if ":Tables" in " ".join(p.info["cmdline"] or [])]


def test_answers_are_those_of_whole_tables(
    asked: tuple[str, list[dict[str, Any]]], serve_port: int, joined_ray: None
) -> None:
    export, rows = asked
    served = rtrain.serve(export, port=serve_port, replicas=Scale(shards=2))
    try:
        wanted = Predictor(export).predict(rows)
        assert apart(served.predict(rows), wanted) <= SAME
        alone = served.predict_concurrently([[row] for row in rows[:40]])
        assert apart([one for (one,) in alone], wanted[:40]) <= SAME
        assert served.predict([]) == []
        dies, *_ = there = of_shards()
        assert len(there) == 2
        os.kill(dies.pid, signal.SIGKILL)
        seen, until = list[int](), time.monotonic() + 120
        while time.monotonic() < until and seen[-20:] != [200] * 20:
            answer = httpx.post(f"{served.url}/predict", json={"rows": rows}, timeout=60)
            seen.append(answer.status_code)
            if answer.status_code == 200:
                assert apart(answer.json()["predictions"], wanted) <= SAME
            else:
                assert answer.headers["retry-after"] == "1" and "does not answer" in answer.json()["detail"], answer
                time.sleep(0.1)
        assert set(seen) <= {200, 503} and seen[-20:] == [200] * 20, seen
    finally:
        served.stop()


def test_what_has_no_tables_to_share_is_refused(tmp_path: Path, joined_ray: None) -> None:
    with pytest.raises(ConfigError, match="Scale.shards: of a model that scores rows alone"):
        application_of(exported(tmp_path, rtrain.MF(dim=8)), scale=Scale(shards=2))
