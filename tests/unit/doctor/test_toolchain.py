"""A PATH without tools, and locks of builds: one left behind, one that a living process holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rtrain.doctor.toolchain import check_build_tools, check_extension_locks, stale_locks


@pytest.fixture
def extensions(tmp_path, monkeypatch):
    folder = tmp_path / "extensions"
    folder.mkdir()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
    return folder


def tool(folder, name):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_an_empty_path_has_neither_compiler_nor_ninja(extensions, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    compiler, ninja = check_build_tools()
    assert (compiler.name, compiler.status) == ("compiler", "fail")
    assert "g++" in compiler.fix
    assert (ninja.name, ninja.status) == ("ninja", "fail")
    assert "pip install ninja" in ninja.fix


def test_without_a_compiler_what_is_compiled_already_still_runs(extensions, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    built = extensions / "deepspeed_shm_comm" / "deepspeed_shm_comm.so"
    built.parent.mkdir()
    built.touch()
    assert check_build_tools()[0].status == "warn"


def test_the_compiler_of_CXX_is_the_one_that_counts(extensions, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "my-c++")
    assert "no my-c++ on PATH" in check_build_tools()[0].found
    path = tool(tmp_path / "bin", "my-c++")
    monkeypatch.setenv("PATH", str(path.parent))
    assert (check_build_tools()[0].status, check_build_tools()[0].found) == ("ok", str(path))


def test_the_environments_own_ninja_is_taken_also_where_it_is_not_on_path(extensions, tmp_path, monkeypatch):
    own = tool(tmp_path / "venv", "ninja")
    other = tool(tmp_path / "usr", "ninja")
    monkeypatch.setattr(sys, "executable", str(own.with_name("python")))
    monkeypatch.setenv("PATH", str(other.parent))
    assert (check_build_tools()[1].status, check_build_tools()[1].found) == ("ok", str(own))
    own.unlink()
    assert check_build_tools()[1].found == str(other)


def test_a_lock_that_nobody_holds_is_told_with_the_command_that_removes_it(extensions):
    lock = extensions / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    lock.touch()
    (finding,) = check_extension_locks()
    assert finding.status == "warn"  # rtrain's next run removes it
    assert finding.fix == f"rm {lock}"
    lock.unlink()
    (finding,) = check_extension_locks()
    assert finding.status == "ok"


def test_a_lock_is_stale_only_once_its_builder_is_dead(extensions):
    lock = Path(extensions / "lock")
    hold = "import os, sys; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print('held', flush=True); sys.stdin.read()"
    builder = subprocess.Popen(
        [sys.executable, "-c", hold, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert builder.stdout.readline() == "held\n"
        assert stale_locks(extensions) == []
    finally:
        builder.kill()
        builder.communicate(timeout=60)
    assert stale_locks(extensions) == [lock.resolve()]


def test_no_folder_has_no_locks(tmp_path):
    assert stale_locks(tmp_path / "absent") == []
    assert os.listdir(tmp_path) == []
