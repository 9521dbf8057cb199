"""An index is refreshed with its model: a release of a retrieval model under load, and back, fails no request."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from rtrain.duration import Duration
from rtrain.endpoint.canary import Canary, Limits
from rtrain.endpoint.endpoint import Endpoint
from rtrain.export.encoders import Encoders
from rtrain.release.gate import Gate
from rtrain.release.servable import Faithful
from tests.cluster.conftest import wait_for
from tests.cluster.load import load
from tests.unit.export.test_index import ITEMS, USERS, run_of, write
from tests.unit.training.jobs import train

K = 10
OTHER_MODEL = Limits(drift=1.0)
"""Scores of another model are others; that is not what is looked at here."""


@pytest.mark.slow
def test_an_index_is_refreshed_under_load(serve_port: int, tmp_path: Path) -> None:
    write(tmp_path)
    first = run_of(tmp_path, "pairs", ITEMS // 2)
    second = replace(first, name="second", seed=1, duration=Duration(epochs=14))
    exports = [Encoders(str(train(run)["export"])) for run in (first, second)]
    assert all(of.index for of in exports), "an index pays here"
    for run in (first, second):
        assert Gate(checks=(Faithful(),)).judge(run.folder, None if run is first else first.folder).passed
    endpoint = Endpoint(
        name="finds", port=serve_port, registry=f"sqlite:///{tmp_path}/registry.db", audit=f"{tmp_path}/audit",
        state=f"{tmp_path}/endpoints",
    )  # fmt: skip
    whom = list(range(8))
    wanted = [[[item for item, _ in of] for of in one.recommend(whom, K)] for one in exports]
    assert wanted[0] != wanted[1]

    def ask(http: httpx.Client, draw: np.random.Generator, headers: dict[str, str]) -> httpx.Response:
        return http.get(f"{endpoint.url}/recommend", params={"user": int(draw.integers(USERS))}, headers=headers)

    def items() -> Any:
        return httpx.post(f"{endpoint.url}/recommend", json={"whom": whom, "k": K}, timeout=60).json()["items"]

    endpoint.release(first.folder, "the first")
    try:
        assert items() == wanted[0]
        quick = Canary(steps=(0.5, 1.0), seconds=1.0, answers=20, patience_s=60, limits=OTHER_MODEL)
        with load(ask) as seen:
            version = endpoint.release(second.folder, "of newer data", quick).version
            settled = endpoint.settled(version, timeout_s=120)
            wait_for(lambda: endpoint.status()["everywhere"], "all routers heard of it")
            assert settled is not None and settled.champion, settled
            assert items() == wanted[1]
            endpoint.rollback("as it was")
            wait_for(lambda: endpoint.status()["everywhere"], "all routers heard of it")
            assert items() == wanted[0]
        assert not seen.failed and {"1", "2"} <= set(seen.versions), seen.statuses
    finally:
        endpoint.stop()
