"""The machine's findings, provoked for real where one can: a bound port, a path under a file."""

import socket
import threading

import fsspec
import pytest

from rtrain.doctor import machine
from rtrain.doctor.machine import (
    GIB,
    check_limits,
    check_niceness,
    check_port,
    check_ray_temp_dir,
    check_shared_memory,
    check_storage,
)


def test_a_busy_port_fails_and_names_who_listens():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        port = server.getsockname()[1]
        finding = check_port(port)
        assert (finding.name, finding.status) == (f"port {port}", "fail")
        assert "busy" in finding.found
        assert "another port" in finding.fix
    assert check_port(port).status == "ok"


def test_a_port_held_on_all_interfaces_is_busy_too():
    with socket.socket() as server:
        server.bind(("0.0.0.0", 0))
        server.listen(1)
        assert check_port(server.getsockname()[1]).status == "fail"


def test_storage_that_can_be_written_is_left_as_it_was(tmp_path):
    finding = check_storage(str(tmp_path / "runs" / "deep"))
    assert finding.status in ("ok", "warn")  # warn: this machine's disk is nearly full
    assert "can be written" in finding.found
    assert list(tmp_path.iterdir()) == []


def test_storage_under_a_file_fails_in_one_line(tmp_path):
    (tmp_path / "taken").write_text("")
    finding = check_storage(str(tmp_path / "taken" / "runs"))
    assert finding.status == "fail"
    assert "taken is a file" in finding.found
    assert "\n" not in finding.found


def test_storage_of_an_unknown_kind_fails():
    finding = check_storage("nosuchstore://bucket/runs")
    assert finding.status == "fail"
    assert "nosuchstore" in finding.found


def test_storage_in_memory_is_written_and_emptied():
    assert check_storage("memory://doctor/runs").status == "ok"
    assert fsspec.filesystem("memory").find("/doctor") == []


def test_storage_that_never_answers_fails_in_time():
    release = threading.Event()

    class Silent(fsspec.AbstractFileSystem):
        protocol = "silent"

        def pipe_file(self, path, value, mode="overwrite", **kwargs):
            release.wait(60)

    fsspec.register_implementation("silent", Silent, clobber=True)
    finding = check_storage("silent://x", timeout_s=0.2)
    release.set()
    assert finding.status == "fail"
    assert "no answer in 0.2 s" in finding.found


def test_too_little_shared_memory_fails_with_the_container_option(tmp_path):
    finding = check_shared_memory(tmp_path, needed=2**80)
    assert finding.status == "fail"
    assert "--shm-size" in finding.fix
    assert check_shared_memory(tmp_path / "absent").status == "warn"


def test_a_full_disk_fails(tmp_path, monkeypatch):
    usage = machine.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage._replace(free=GIB // 2))
    assert check_storage(str(tmp_path)).status == "fail"
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage._replace(free=5 * GIB))
    assert check_storage(str(tmp_path)).status == "warn"


def test_a_temp_dir_too_long_for_rays_sockets_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * 60)
    finding = check_ray_temp_dir()
    assert finding.status == "fail"
    assert "too long by 2" in finding.found
    monkeypatch.setenv("RAY_TMPDIR", "/no-such-dir")
    assert check_ray_temp_dir().status == "fail"
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert check_ray_temp_dir().found.startswith("/tmp, ")


@pytest.mark.parametrize(
    ("environ", "cores", "nice", "status"),
    [
        ({}, 2, 0, "ok"),  # rtrain starts its own Ray with 0
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, 2, 0, "warn"),
        ({"RAY_worker_niceness": "0"}, 2, 0, "ok"),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, 64, 0, "ok"),
        ({"RAY_worker_niceness": "0"}, 64, 10, "warn"),
    ],
)
def test_niceness(environ, cores, nice, status):
    assert check_niceness(environ, cores, nice).status == status


def test_limits_look_at_four_things():
    assert [f.name for f in check_limits()] == ["cores", "memory", "open files", "niceness"]
