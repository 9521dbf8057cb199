"""The Ray cluster that the environment names, its address and its token; and Rays here that let anybody in."""

import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from rtrain.doctor.finding import Finding
from rtrain.errors import one_line


def check_ray_auth(environ: Mapping[str, str], token_file: Path) -> Finding:
    """RAY_AUTH_MODE and the token that clients of a cluster must carry (Ray 2.60 asks for one by default)."""
    mode = environ.get("RAY_AUTH_MODE", "").lower()
    cluster = environ.get("RAY_ADDRESS", "") not in ("", "local")
    named = environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else token_file
    token = bool(environ.get("RAY_AUTH_TOKEN")) or (path.is_file() and bool(path.read_text().strip()))
    if mode not in ("", "token", "disabled"):
        return Finding("ray auth", "fail", f"RAY_AUTH_MODE={mode!r}", "set it to token or disabled")
    text = f"RAY_AUTH_MODE {mode or 'unset'}, {'a' if token else 'no'} token"
    fix = f"put the cluster's token into {path} or RAY_AUTH_TOKEN, and set RAY_AUTH_MODE=token on both sides"
    if named and not Path(named).is_file() and not environ.get("RAY_AUTH_TOKEN") and mode != "disabled":
        return Finding("ray auth", "fail", f"RAY_AUTH_TOKEN_PATH={named} is not there", fix)
    if not cluster:  # a local Ray makes its own token where it needs one
        return Finding("ray auth", "ok", text)
    if mode == "token" and not token:
        return Finding("ray auth", "fail", text, fix)
    if not mode:
        return Finding("ray auth", "warn", f"{text}, and RAY_ADDRESS names a cluster", fix)
    return Finding("ray auth", "ok", text)


def check_ray_address(address: str, *, timeout_s: float = 5.0) -> Finding:
    """Does the cluster that RAY_ADDRESS names answer?"""
    name = "ray address"
    if address in ("", "local"):
        return Finding(name, "ok", "RAY_ADDRESS unset: a local Ray starts and stops with the run")
    if address == "auto":
        return Finding(name, "ok", "auto: the Ray that runs on this machine")
    match = re.fullmatch(r"(?:\w+://)?\[?([^/]+?)\]?:(\d+)/?", address)
    if not match:
        return Finding(name, "fail", f"RAY_ADDRESS={address!r}", "write host:port, ray://host:port or local")
    try:
        socket.create_connection((match[1], int(match[2])), timeout=timeout_s).close()
    except (OSError, OverflowError) as error:
        fix = "start the cluster (ray start --head), correct RAY_ADDRESS, or unset it for a local Ray"
        return Finding(name, "fail", f"{address} does not answer: {one_line(error)}", fix)
    return Finding(name, "ok", f"{address} answers")


JOBS = ("/api/job_agent/jobs/rtrain-doctor/logs", "/api/jobs/rtrain-doctor")
"""Where Ray's agent and its dashboard know of jobs; of one that does not exist, so that asking changes nothing."""
RAYS = ("dashboard", "gcs_server", "raylet")


def check_open_rays(*, timeout_s: float = 3.0) -> list[Finding]:
    """Rays on this machine, whosever they are, that take tasks or jobs without a token at any of its addresses."""
    name, opened = "open ray", set[str]()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            called = process.name().lower()
            if not any(ray in called for ray in RAYS):
                continue
            unguarded = called == "gcs_server" and _has_no_token(process)
            opened |= {at for at in _listens(process) if unguarded or _takes_jobs(at, timeout_s)}
    if not opened:
        return [Finding(name, "ok", "no Ray on this machine takes tasks or jobs without a token")]
    return [
        Finding(
            name,
            "warn",
            f"the Ray at {', '.join(sorted(opened))} runs commands for anybody who reaches it (CVE-2023-48022)",
            "stop it (`ray stop`), and start it with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH",
        )
    ]


def _listens(process: psutil.Process) -> Iterator[str]:
    """host:port of what a process listens on; any address stands for each one of this machine."""
    everywhere = [a.address for of in psutil.net_if_addrs().values() for a in of if a.family == socket.AF_INET]
    for connection in process.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN:
            host, port = connection.laddr.ip, connection.laddr.port
            for address in everywhere if host in ("0.0.0.0", "::") else [host]:
                yield f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _has_no_token(gcs: psutil.Process) -> bool:
    """Whether a GCS of ours asks for none; another user's cannot be looked into, and its job ports are tried alone."""
    try:
        return gcs.environ().get("RAY_AUTH_MODE", "").lower() != "token"
    except psutil.AccessDenied:
        return False


def _takes_jobs(at: str, timeout_s: float) -> bool:
    """Whether a job could be asked for without a token: one is looked up, and not found."""
    for path in JOBS:
        with suppress(httpx.HTTPError):
            answer = httpx.get(f"http://{at}{path}", timeout=timeout_s, trust_env=False)
            if answer.status_code == 404 and "rtrain-doctor" in answer.text:
                return True
    return False
