"""The Ray cluster that the environment names: its address and its token."""

import re
import socket
from collections.abc import Mapping
from pathlib import Path

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
