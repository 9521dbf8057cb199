"""What says that there is no Ray to join, before Ray's own client does so minutes later, from C++."""

import pytest
import ray
from ray._private import services

from rtrain.errors import ClusterError
from rtrain.launch.session import join_running


def join() -> None:
    with join_running("endpoints"):
        raise AssertionError("there is nothing to join")


@pytest.fixture(autouse=True)
def of_no_test_before() -> None:
    assert not ray.is_initialized()


def test_a_ray_of_its_own_is_none_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(ClusterError, match="endpoints: RAY_ADDRESS=local is a Ray that ends with this command"):
        join()
    assert not ray.is_initialized()


@pytest.mark.parametrize("address", ["", "auto", None])
def test_one_of_this_machine_that_has_died_is_found_out_at_once(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its address stays behind in a file of Ray's."""
    monkeypatch.setenv("RAY_ADDRESS", address or "")  # so that what is set here is taken back
    if address is None:
        monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(services, "canonicalize_bootstrap_address", lambda _: "127.0.0.1:1")
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray asks for minutes"))
    with pytest.raises(ClusterError, match="endpoints: no Ray runs on this machine.*Start one with 'ray start --head'"):
        join()
