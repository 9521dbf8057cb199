"""DeepSpeed's extension loads past a lock that a killed build left, and without any where it is built."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rtrain.parallel import extension
from rtrain.training.processes import in_world

LOAD = """
import rtrain.parallel.zero
import torch
from rtrain.parallel import extension
extension.load(torch.device('cpu'))
from deepspeed.accelerator import get_accelerator
builder = type(get_accelerator().create_op_builder("ShareMemCommBuilder"))
print("loaded", builder._loaded_ops["deepspeed_shm_comm"].__file__)
"""


def load(folder: Path) -> str:
    env = os.environ | {"TORCH_EXTENSIONS_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", LOAD], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_lock_that_a_killed_build_left(tmp_path: Path) -> None:
    built = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(sys.prefix) / "torch_extensions")
    shutil.copytree(built / "deepspeed_shm_comm", tmp_path / "deepspeed_shm_comm")
    (tmp_path / "deepspeed_shm_comm" / "lock").touch()  # nobody has it open
    assert "loaded" in load(tmp_path)
    assert not (tmp_path / "deepspeed_shm_comm" / "lock").exists()
    # Built, it needs no compiler, no ninja and no lock: a folder in which nothing can be written will do.
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "deepspeed_shm_comm").iterdir()}
    assert str(tmp_path / "deepspeed_shm_comm" / "deepspeed_shm_comm.so") in load(tmp_path)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "deepspeed_shm_comm").iterdir()} == before


HOLD = "import sys, time; f = open(sys.argv[1], 'w'); print('held', flush=True); time.sleep(3)"


def test_a_lock_whose_holder_ends_while_it_is_waited_for(tmp_path: Path) -> None:
    built = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(sys.prefix) / "torch_extensions")
    folder = tmp_path / "deepspeed_shm_comm"
    shutil.copytree(built / "deepspeed_shm_comm", folder)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder / "lock")], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
            assert "loaded" in load(tmp_path)  # torch alone would wait for ever: nobody removes the file
        finally:
            holder.kill()
    assert not (folder / "lock").exists()


def without_a_folder_named() -> str:
    """On a rank: what is loaded, in an environment as that of a shell that nobody has prepared."""
    assert "TORCH_EXTENSIONS_DIR" not in os.environ
    from deepspeed.accelerator import get_accelerator

    extension.load(torch.device("cpu"))
    builder = type(get_accelerator().create_op_builder("ShareMemCommBuilder"))
    return str(builder._loaded_ops["deepspeed_shm_comm"].__file__)


def test_a_rank_finds_it_where_no_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # `rtrain.training.processes` gives a rank its parent's environment, after this module was imported there.
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    own = str(Path(sys.prefix) / "torch_extensions")
    assert all(path.startswith(own) for path in in_world(2, without_a_folder_named, deadline_s=200))
