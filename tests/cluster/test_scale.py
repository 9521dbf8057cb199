"""A load that one replica cannot answer: more start, none is refused; and one that too many wait for: 429, typed."""

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from ray import serve as ray_serve

import rtrain
from rtrain.serving.scale import Scale
from tests.cluster.conftest import wait_for
from tests.unit.release.runs import run_of, write_rows
from tests.unit.training.jobs import train

ROW = {"user": 1, "item": 2, "price": 0.5}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("scale")
    write_rows(folder)
    return str(train(run_of(folder, "good"))["export"])


def replicas() -> int:
    status = ray_serve.status().applications["rtrain"].deployments
    return sum(one.replica_states.get("RUNNING", 0) for one in status.values())


class Load:
    """So many clients that ask without a pause, each many rows, until it is over."""

    def __init__(self, url: str, clients: int, rows: int):
        self.statuses: Counter[int] = Counter()
        self.retry: set[str | None] = set()
        self._over, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(url, rows), daemon=True) for _ in range(clients)]

    def _ask(self, url: str, rows: int) -> None:
        with httpx.Client(timeout=60) as http:
            while not self._over.is_set():
                answer = http.post(f"{url}/predict", json={"rows": [ROW] * rows})
                with self._lock:
                    self.statuses[answer.status_code] += 1
                    if answer.status_code == 429:
                        self.retry.add(answer.headers.get("retry-after"))

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)


@pytest.fixture
def served(serve_port: int, export: str, request: Any) -> Iterator[Any]:
    found = rtrain.serve(export, port=serve_port, replicas=request.param)
    yield found
    found.stop()


GROWS = Scale(least=1, most=2, ongoing=2.0, ahead_s=5.0, every_s=1.0, up_s=0.5, down_s=2.0)


@pytest.mark.slow
@pytest.mark.parametrize("served", [GROWS], indirect=True)
def test_more_replicas_come_with_the_load_and_go_with_it(served: Any) -> None:
    assert replicas() == 1
    with Load(served.url, clients=6, rows=20) as load:
        wait_for(lambda: replicas() == 2, "a second replica answers")
        before = sum(load.statuses.values())
        wait_for(lambda: sum(load.statuses.values()) > before + 50, "both answer")
    wait_for(lambda: replicas() == 1, "one is enough again")
    assert set(load.statuses) == {200}, load.statuses


@pytest.mark.slow
@pytest.mark.parametrize("served", [Scale(at_once=1, waiting=1)], indirect=True)
def test_more_than_may_wait_are_told_when_to_ask_again(served: Any) -> None:
    with Load(served.url, clients=8, rows=200) as load:
        wait_for(lambda: load.statuses[200] > 20 and load.statuses[429] > 20, "some are answered, and some refused")
    assert set(load.statuses) == {200, 429} and load.retry == {"1"}, (load.statuses, load.retry)
    assert httpx.post(f"{served.url}/predict", json={"rows": [ROW]}, timeout=60).status_code == 200
