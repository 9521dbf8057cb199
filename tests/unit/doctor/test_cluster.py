"""RAY_ADDRESS and the token, against a real listening socket and real token files."""

import socket

import pytest

from rtrain.doctor.cluster import check_ray_address, check_ray_auth


@pytest.mark.parametrize("address", ["", "local", "auto"])
def test_no_cluster_named(address):
    assert check_ray_address(address).status == "ok"


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "http://localhost:{}/"])
def test_an_address_answers_while_something_listens(form):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        address = form.format(server.getsockname()[1])
        assert check_ray_address(address).status == "ok"
    finding = check_ray_address(address)
    assert finding.status == "fail"
    assert "ray start --head" in finding.fix


@pytest.mark.parametrize("address", ["head", "ray://", "host:port", "127.0.0.1:999999"])
def test_an_address_that_cannot_be_one(address):
    assert check_ray_address(address).status == "fail"


CLUSTER = {"RAY_ADDRESS": "head:6379"}


@pytest.mark.parametrize(
    ("environ", "status"),
    [
        ({}, "ok"),
        ({"RAY_AUTH_MODE": "token"}, "ok"),
        ({"RAY_AUTH_MODE": "tokens"}, "fail"),
        (CLUSTER, "warn"),
        (CLUSTER | {"RAY_AUTH_MODE": "token"}, "fail"),
        (CLUSTER | {"RAY_AUTH_MODE": "TOKEN", "RAY_AUTH_TOKEN": "s3cret"}, "ok"),
        (CLUSTER | {"RAY_AUTH_MODE": "disabled"}, "ok"),
        ({"RAY_AUTH_TOKEN_PATH": "/no/such/token"}, "fail"),
    ],
)
def test_auth_without_a_token_file(environ, status, tmp_path):
    assert check_ray_auth(environ, tmp_path / "auth_token").status == status


def test_auth_with_a_token_file_never_shows_the_token(tmp_path):
    token = tmp_path / "auth_token"
    token.write_text("s3cret\n")
    finding = check_ray_auth(CLUSTER | {"RAY_AUTH_MODE": "token"}, token)
    assert finding.status == "ok"
    assert "s3cret" not in finding.found + finding.fix
    token.write_text("\n")
    assert check_ray_auth(CLUSTER | {"RAY_AUTH_MODE": "token"}, token).status == "fail"
