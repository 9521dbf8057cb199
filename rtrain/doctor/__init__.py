"""What is wrong with this machine, before a run finds out: each finding carries what was found and its fix.

`fail` means that the main job (two workers on this machine, tables by TorchRec, the tower under
DeepSpeed, served on port 8000) would not run; `warn` that it would run slowly or only by luck.
Nothing here imports torch or Ray: they are tried in a child process, so that a crash is a finding too.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from rtrain.doctor.cluster import check_open_rays, check_ray_address, check_ray_auth
from rtrain.doctor.finding import Finding, render, to_json
from rtrain.doctor.machine import check_limits, check_port, check_ray_temp_dir, check_shared_memory, check_storage
from rtrain.doctor.packages import PACKAGES, check_imports, check_python, check_versions, installed
from rtrain.doctor.toolchain import check_build_tools, check_extension_locks
from rtrain.errors import one_line

__all__ = ["Finding", "examine", "render", "to_json"]


def examine(*, storage: str = "runs", ports: tuple[int, ...] = (8000,)) -> list[Finding]:
    """Everything that the main job needs of this machine; about ten seconds, most of it imports.

    `storage` is the fsspec URI that runs are written under, `ports` those that a run would listen on.
    Raises nothing: a check that breaks is itself a finding.
    """
    checks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("python", lambda: [check_python(sys.version_info[:2])]),
        ("versions", lambda: check_versions(installed(PACKAGES))),
        ("imports", check_imports),
        ("compiler", check_build_tools),
        ("torch extensions", check_extension_locks),
        ("shared memory", lambda: [check_shared_memory()]),
        ("storage", lambda: [check_storage(storage)]),
        ("ray temp dir", lambda: [check_ray_temp_dir()]),
        ("ports", lambda: [check_port(port) for port in ports]),
        ("ray auth", lambda: [check_ray_auth(os.environ, Path.home() / ".ray" / "auth_token")]),
        ("ray address", lambda: [check_ray_address(os.environ.get("RAY_ADDRESS", ""))]),
        ("open ray", check_open_rays),
        ("limits", check_limits),
    ]
    return [finding for name, check in checks for finding in _guarded(name, check)]


def _guarded(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except Exception as error:
        return [Finding(name, "warn", f"could not be looked at: {one_line(error)}", "report this as a bug of rtrain")]
