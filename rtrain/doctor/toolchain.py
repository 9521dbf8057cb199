"""What DeepSpeed compiles with at its first start, and the locks that a killed build leaves behind."""

import os
import shutil
import sys
import time
from pathlib import Path

from rtrain.doctor.finding import Finding
from rtrain.parallel.extension import compiled, stale_locks


def extension_dirs() -> list[Path]:
    """The folders in which torch may keep compiled extensions: rtrain's, and where none is named the user's."""
    users = [] if "TORCH_EXTENSIONS_DIR" in os.environ else [Path.home() / ".cache" / "torch_extensions"]
    return [compiled(), *users]


def check_build_tools() -> list[Finding]:
    """A C++ compiler and ninja: DeepSpeed compiles its CPU communication at its first start."""
    built = next((so for d in extension_dirs() for so in d.glob("**/deepspeed_shm_comm.so")), None)
    findings = []
    cxx = os.environ.get("CXX", "c++")
    if path := shutil.which(cxx):
        findings.append(Finding("compiler", "ok", path))
    elif built:
        found = f"no {cxx} on PATH; DeepSpeed's extension is compiled already ({built})"
        findings.append(Finding("compiler", "warn", found, "apt-get install g++"))
    else:
        found = f"no {cxx} on PATH, and DeepSpeed's extension is not compiled yet"
        findings.append(Finding("compiler", "fail", found, "apt-get install g++, then `make install`"))
    beside = Path(sys.executable).with_name("ninja")
    # The one of this environment is taken, whether that is activated or not (`rtrain.parallel.extension`).
    path = str(beside) if beside.exists() else shutil.which("ninja")
    if not path:
        findings.append(Finding("ninja", "fail", "neither in this environment nor on PATH", "pip install ninja"))
    else:
        findings.append(Finding("ninja", "ok", path))
    return findings


def check_extension_locks() -> list[Finding]:
    """Locks left behind by a worker that was killed while it compiled."""
    findings = []
    for folder in extension_dirs():
        for lock in stale_locks(folder):
            age = max(0.0, time.time() - lock.stat().st_mtime) / 60
            found = f"{lock} left by a killed build {age:.0f} min ago: torch waits on it for ever; rtrain removes it"
            findings.append(Finding("torch extensions", "warn", found, f"rm {lock}"))
    return findings or [Finding("torch extensions", "ok", "no lock left behind")]
