"""A Ray of this process's own: behind a fresh token, in a folder of its own, gone when it is left.

Ray binds its ports on every interface of the machine, so whoever reaches one could run commands here
(CVE-2023-48022). With a token that only this user can read, a job, a task and a GCS read are refused
without it. It encrypts nothing: between machines that is the cluster's own matter.
"""

import logging
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import psutil
import ray

from rtrain import scratch
from rtrain.launch.process_group import groups_of_their_own

TEMP_DIR = "RTRAIN_RAY_TEMP_DIR"
"""Environment variable: where the folder of an embedded Ray is made; a short path, since it holds sockets."""
FOLDER = re.compile(r"rt-(\d+)-\w+")
GONE_S = 15.0
"""Seconds that Ray's processes get to end by themselves after its shutdown; they took under 1 s when measured."""
CLOCKS_S = 5.0
"""Seconds by which the start of a process, which the kernel counts from a boot time in whole seconds, may be off."""
STARTS, SLOW = 3, "timed out during startup"
"""Times that Ray is started, and what it says when its node was not up within 30 s, which nothing can set."""
_OURS: list[Path] = []
"""The folder of this process's embedded Ray while it runs."""
AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@contextmanager
def embedded_ray(num_cpus: int) -> Iterator[None]:
    """Start a Ray on this machine; at the end its processes and its folder are gone, and the environment is as before.

    What a killed process left behind is removed first.

    Raises:
        ConnectionError, RuntimeError, OSError, ValueError, TimeoutError: as `ray.init`.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        _say_token_is_asked_for()
    base = Path(os.environ.get(TEMP_DIR) or "/tmp")  # not TMPDIR: Ray's sockets need a path under 107 characters
    base.mkdir(parents=True, exist_ok=True)
    sweep(base)
    scratch.sweep()
    temporary = scratch.Scratch("ray")  # what torch, wandb and others put there goes with it; workers run no clean-up
    folder = Path(tempfile.mkdtemp(prefix=f"rt-{os.getpid()}-", dir=base))  # mode 700
    before = {name: os.environ.pop(name, None) for name in AUTH}
    _OURS.append(folder)
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    _reread_auth()
    try:
        # A signal to this process's group (`timeout`, a terminal, SLURM) is for it to answer: Ray goes when it is done.
        with _environ("TMPDIR", str(temporary.path)), groups_of_their_own():
            _init(folder, num_cpus)
        yield
    finally:
        ours = processes_in(folder)
        with suppress(Exception):  # a Ray that broke must not hide why
            ray.shutdown()
        end(ours)
        _OURS.remove(folder)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        _reread_auth()
        shutil.rmtree(folder, ignore_errors=True)
        temporary.remove()


def _init(folder: Path, num_cpus: int) -> None:
    for left in reversed(range(STARTS)):
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=False,  # the driver shows the run's own progress; worker logs stay in Ray's folder
                logging_level=logging.ERROR,
                _temp_dir=str(folder / "r"),  # Ray opens its own folder to all users; the one around it stays closed
            )
            return
        except Exception as error:  # a bare one is what it raises
            if not left or SLOW not in str(error):
                raise
            print("rtrain: Ray was not up within its 30 s; the machine is busy. Once more", file=sys.stderr, flush=True)
            ray.shutdown()
            end(processes_in(folder))
            shutil.rmtree(folder / "r", ignore_errors=True)


@contextmanager
def _environ(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def logs() -> Path | None:
    """Where the workers of this process's embedded Ray write; none without one."""
    return _OURS[-1] / "r" / "session_latest" / "logs" if _OURS else None


@cache
def _say_token_is_asked_for() -> None:
    """Once a process."""
    print(
        "rtrain: RAY_AUTH_MODE=disabled is not taken over by the embedded Ray: whoever reaches this machine's ports "
        "could run commands on it. For a Ray without a token start one, and set RAY_ADDRESS to it",
        file=sys.stderr,
        flush=True,
    )


def sweep(base: Path) -> None:
    """Remove the folders of embedded Rays in `base` whose process is gone, and what still runs from them."""
    for folder in base.iterdir():
        found = FOLDER.fullmatch(folder.name)
        with suppress(OSError):  # another process sweeps too
            status = folder.lstat()
            if not found or not folder.is_dir() or folder.is_symlink() or status.st_uid != os.getuid():
                continue
            with suppress(psutil.NoSuchProcess):
                # A process that is younger than the folder has only been given the same number.
                if psutil.Process(int(found[1])).create_time() <= status.st_mtime + CLOCKS_S:
                    continue
            end(processes_in(folder))
            shutil.rmtree(folder, ignore_errors=True)


def processes_in(folder: Path) -> list[psutil.Process]:
    """Ray's processes that work in `folder`, and all that they started."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and _works_in(process, str(folder)):
                found |= {p.pid: p for p in [process, *process.children(recursive=True)]}
    found.pop(os.getpid(), None)
    return list(found.values())


def _works_in(process: psutil.Process, folder: str) -> bool:
    words = process.cmdline()
    if words and words[0].startswith("ray::"):  # it has written its title over its command line
        return any(file.path.startswith(f"{folder}/") for file in process.open_files())
    return any(folder in word for word in words)


def end(processes: list[psutil.Process]) -> None:
    """Wait until they have ended; kill those that do not."""
    _, alive = psutil.wait_procs(processes, timeout=GONE_S)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=GONE_S)


def _reread_auth() -> None:
    """Ray reads mode and token once a process: have it read them again."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
