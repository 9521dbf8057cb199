"""The machine under a run: shared memory, disk, memory, limits, ports."""

import os
import resource
import shutil
import socket
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

import fsspec
import psutil

from rtrain.doctor.finding import Finding, Status
from rtrain.errors import one_line

GIB = 2**30
MIB = 2**20
# DeepSpeed writes one all-reduce buffer of 66 MiB per worker there; Ray's object store comes on top.
SHM_NEEDED = 160 * MIB
# What Ray adds to its temp dir for the longest of its sockets, and the kernel's limit for such a path.
SOCKET_TAIL = len("/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.0")
SOCKET_LIMIT = 107


def check_shared_memory(folder: Path = Path("/dev/shm"), needed: int = SHM_NEEDED) -> Finding:
    """Room for the workers' shared buffers (`needed`, bytes) and Ray's object store."""
    if not folder.is_dir():
        return Finding("shared memory", "warn", f"{folder} is not there", "Ray falls back to disk, which is slow")
    free = shutil.disk_usage(folder).free
    text = f"{free / GIB:.1f} GiB free in {folder}"
    fix = "remove what fills it, or start the container with --shm-size=8g"
    if free < needed:
        return Finding("shared memory", "fail", f"{text}, 2 workers need {needed / MIB:.0f} MiB", fix)
    if free < 2 * GIB:
        return Finding("shared memory", "warn", f"{text}: Ray will keep objects on disk", fix)
    return Finding("shared memory", "ok", text)


def check_storage(storage: str, *, timeout_s: float = 20.0) -> Finding:
    """Can a file be written under `storage` (any fsspec URI), and is there room? Leaves nothing behind."""
    fix = "choose a folder or bucket that can be written: --storage, or free it"
    outcome: list[Finding] = []

    def attempt() -> None:
        try:
            outcome.append(_write_once(storage))
        except Exception as error:
            outcome.append(Finding("storage", "fail", f"{storage}: cannot be written: {one_line(error)}", fix))

    thread = threading.Thread(target=attempt, daemon=True)  # a store that never answers must not hold the doctor
    thread.start()
    thread.join(timeout_s)
    return outcome[0] if outcome else Finding("storage", "fail", f"{storage}: no answer in {timeout_s:g} s", fix)


def _write_once(storage: str) -> Finding:
    fs, path = fsspec.core.url_to_fs(storage)
    if "file" not in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)):
        name = f"{path.rstrip('/')}/.rtrain-doctor-{os.getpid()}"
        fs.pipe_file(name, b"rtrain doctor")
        fs.rm_file(name)
        return Finding("storage", "ok", f"{storage} can be written")
    folder = Path(path)
    while not folder.exists():  # a run makes the missing part; the doctor leaves no folder behind
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file")
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"rtrain doctor")
        file.flush()
    return _room("storage", folder, f"{path} can be written")


def check_ray_temp_dir() -> Finding:
    """Room in Ray's temp dir, and a path short enough for its sockets."""
    temp = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
    if len(str(temp)) + SOCKET_TAIL > SOCKET_LIMIT:
        found = f"{temp} is too long by {len(str(temp)) + SOCKET_TAIL - SOCKET_LIMIT} characters for Ray's sockets"
        return Finding("ray temp dir", "fail", found, "export RAY_TMPDIR=/tmp")
    if not temp.is_dir():
        return Finding("ray temp dir", "fail", f"{temp} is not a folder", f"mkdir -p {temp}, or unset RAY_TMPDIR")
    return _room("ray temp dir", temp, str(temp))


def _room(name: str, folder: Path, text: str) -> Finding:
    usage = shutil.disk_usage(folder)
    text = f"{text}, {usage.free / GIB:.1f} GiB free"
    if usage.free < GIB:
        return Finding(name, "fail", text, f"free at least 1 GiB on the disk of {folder}")
    if usage.free < 10 * GIB or usage.used > 0.95 * usage.total:
        return Finding(
            name, "warn", text, f"free some: Ray stops making objects when the disk of {folder} is 95 % full"
        )
    return Finding(name, "ok", text)


def check_limits() -> list[Finding]:
    """Cores, memory, open files, and the niceness that workers would run at."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = psutil.virtual_memory().available
    findings = [
        Finding("cores", "ok", str(cores))
        if cores >= 2
        else Finding("cores", "warn", f"{cores}: the recipes ask for 2 workers", "set cluster.workers to 1"),
        _memory(free),
    ]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # Ray raises the soft limit to the hard one by itself
    text = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    low = hard != resource.RLIM_INFINITY and hard < 4096
    fix = "raise it: ulimit -Hn 65536 as root, or LimitNOFILE / --ulimit nofile=65536 of the service or container"
    findings.append(Finding("open files", "warn" if low else "ok", f"at most {text}", fix if low else ""))
    findings.append(check_niceness(os.environ, cores, os.getpriority(os.PRIO_PROCESS, 0)))
    return findings


def _memory(free: int) -> Finding:
    text = f"{free / GIB:.1f} GiB available"
    fix = "end what uses it; Ray's own processes take 1.5 GiB and each worker about 1 GiB"
    status: Status = "fail" if free < 2 * GIB else "warn" if free < 5 * GIB else "ok"
    return Finding("memory", status, text, "" if status == "ok" else fix)


def check_niceness(environ: Mapping[str, str], cores: int, nice: int) -> Finding:
    """Ray's workers run at nice 15 unless told otherwise, so on few cores anything else starves them.

    A Ray that rtrain starts is told so; a cluster is not.
    """
    workers = environ.get("RAY_worker_niceness", "15" if environ.get("RAY_ADDRESS") else "0")
    text = f"this process {nice}, Ray's workers {workers}"
    if nice > 0:
        return Finding("niceness", "warn", text, "start rtrain without `nice`")
    if cores <= 4 and workers != "0":
        return Finding("niceness", "warn", f"{text}: on {cores} cores they starve", "export RAY_worker_niceness=0")
    return Finding("niceness", "ok", text)


def check_port(port: int) -> Finding:
    """Can a server listen on this port of this machine?"""
    name = f"port {port}"
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is not busy
        try:
            server.bind(("127.0.0.1", port))
            server.listen(1)
        except PermissionError:
            return Finding(name, "fail", "only root may listen here", "choose a port above 1023")
        except OSError as error:
            fix = "end what listens there, or choose another port: serve --port"
            return Finding(name, "fail", f"busy{_listener(port)} ({error.strerror})", fix)
    return Finding(name, "ok", "free")


def _listener(port: int) -> str:
    try:
        for c in psutil.net_connections(kind="tcp"):
            if c.status == psutil.CONN_LISTEN and c.pid and c.laddr and c.laddr.port == port:
                return f": {psutil.Process(c.pid).name()} (pid {c.pid})"
    except psutil.Error:
        pass
    return ""
