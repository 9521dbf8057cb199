"""DeepSpeed's compiled CPU communication: built once an environment, and loaded without a lock from then on.

torch's own lock is a file that a killed build leaves behind, and that every later start would wait on
for ever. So ranks queue at a lock of the kernel's (flock), which ends with its holder, and whoever has
it first removes torch's where no living process holds it.
"""

import fcntl
import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from rtrain.errors import ClusterError

BUILD_S = 600.0
"""Seconds that a build by another process is waited for; it takes about 30 s on one core."""


def compiled() -> Path:
    """Where torch keeps what it compiles: `TORCH_EXTENSIONS_DIR`, else this environment's own folder."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(sys.prefix) / "torch_extensions")


def load(device: torch.device) -> None:
    """Have DeepSpeed work on `device`, and of a CPU the extension in this process; build it where it is not built.

    Raises:
        ClusterError: another process has been building it for longer than `BUILD_S`.
        RuntimeError: it cannot be compiled (torch's words).
    """
    from deepspeed.accelerator import get_accelerator, set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

    # Set at each use: a rank may have been given another environment since this module was imported.
    os.environ["TORCH_EXTENSIONS_DIR"] = str(compiled())  # torch's own choice is the user's, which all share
    # This environment's ninja, also where it is not activated: versions do not read each other's logs, and so
    # compile again what another one compiled.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if device.type != get_accelerator().device_name():  # by itself it takes the machine's GPU, also for a run on CPU
        set_accelerator(CUDA_Accelerator() if device.type == "cuda" else CPU_Accelerator())
    if device.type != "cpu":
        return  # DeepSpeed needs it for the CPU alone
    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    folder = compiled() / builder.name
    if builder.name in type(builder)._loaded_ops or _load_built(builder, folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _wait_for_lock(folder)
        if not _load_built(builder, folder):  # whoever had the lock may have built it
            builder.load(verbose=False)


def stale_locks(folder: Path) -> list[Path]:
    """Lock files of extension builds that no living process holds open.

    A build killed half-way leaves its `lock`, and every later build waits on it for ever. torch holds
    the file open while it builds, so a lock that nobody has open is nobody's.
    """
    locks = {p.resolve() for p in folder.glob("**/lock") if p.is_file()} if folder.is_dir() else set()
    if not locks:
        return []
    held = set()
    for process in psutil.process_iter():
        try:
            held |= {Path(f.path) for f in process.open_files()}
        except psutil.Error:
            continue
    return sorted(locks - held)


def _wait_for_lock(folder: Path) -> None:
    """Until nobody holds torch's lock: torch itself would wait for the file to go, also once its holder has died."""
    lock, ends = folder / "lock", time.monotonic() + BUILD_S
    announced = False
    while True:
        for stale in stale_locks(folder):
            stale.unlink(missing_ok=True)
        if not lock.exists():
            return
        if time.monotonic() >= ends:
            raise ClusterError(
                f"{lock}: another process has held it for {BUILD_S:g} s. "
                "Look what it waits for, or end it, and start again"
            )
        if not announced:
            print(
                f"waiting for another process that builds DeepSpeed's extension ({lock})", file=sys.stderr, flush=True
            )
            announced = True
        time.sleep(0.5)


def _load_built(builder: Any, folder: Path) -> bool:
    """Load what is built already; not while it is being built, nor when torch or its sources are newer than it."""
    built = folder / f"{builder.name}.so"
    if not built.is_file() or (folder / "lock").exists():
        return False
    sources = [torch.version.__file__, *(builder.deepspeed_src_path(source) for source in builder.sources())]
    if built.stat().st_mtime < max(os.stat(str(source)).st_mtime for source in sources):
        return False
    spec = importlib.util.spec_from_file_location(builder.name, built)
    assert spec is not None and spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError:
        return False  # a linker was killed, or it is for another torch: built again
    type(builder)._loaded_ops[builder.name] = module
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process of this machine is in here at the same time."""
    path, ends = folder / "queue", time.monotonic() + BUILD_S
    with open(path, "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= ends:
                    raise ClusterError(
                        f"{folder}: another process has been building DeepSpeed's extension for {BUILD_S:g} s. "
                        "Look what it waits for, or end it, and start again"
                    ) from None
                time.sleep(0.1)
        yield
