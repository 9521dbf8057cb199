"""Python and the packages: do their versions fit one another, and do they import?"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version

from rtrain.doctor.finding import Finding

# fbgemm is compiled against one minor version of torch; torchrec has fbgemm's number.
FBGEMM_FOR_TORCH = {"2.11": "1.6", "2.13": "1.8", "2.14": "1.9"}
PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "deepspeed", "ray")
MODULES = ("torch", "fbgemm_gpu", "torchrec", "deepspeed", "ray")
REINSTALL = "run `make install` (cluster/install.sh), which installs the versions of constraints.txt"


def check_python(running: tuple[int, int]) -> Finding:
    """Python 3.11 or 3.12: what the pinned versions have wheels for."""
    text = f"{running[0]}.{running[1]} ({sys.executable})"
    if (3, 11) <= running < (3, 13):
        return Finding("python", "ok", text)
    return Finding("python", "fail", text, "use Python 3.11 or 3.12: make install PYTHON=python3.11")


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The version of each of `packages` that is installed here; the others are left out."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def check_versions(versions: Mapping[str, str]) -> list[Finding]:
    """Do the installed versions fit one another? Pure: `versions` is what `installed` returns."""
    findings = [
        Finding(name, "ok", versions[name]) if name in versions else Finding(name, "fail", "not installed", REINSTALL)
        for name in ("torch", "torchrec")
    ]
    findings.append(_fbgemm_fit(versions))
    builds = [versions[b] for b in ("fbgemm-gpu-cpu", "fbgemm-gpu") if b in versions]
    if builds and "torchrec" in versions and _minor(versions["torchrec"]) != _minor(builds[0]):
        found = f"{versions['torchrec']}, but fbgemm is {builds[0]}: they are released in pairs"
        findings[1] = Finding("torchrec", "warn", found, REINSTALL)
    for name, wanted in (("deepspeed", "0.19"), ("ray", "2.60")):
        if name not in versions:
            findings.append(Finding(name, "fail", "not installed", REINSTALL))
        elif _minor(versions[name]) != wanted:
            found = f"{versions[name]}; rtrain is tested with {wanted}.*"
            findings.append(Finding(name, "warn", found, REINSTALL))
        else:
            findings.append(Finding(name, "ok", versions[name]))
    return findings


def _fbgemm_fit(versions: Mapping[str, str]) -> Finding:
    builds = {b: versions[b] for b in ("fbgemm-gpu", "fbgemm-gpu-cpu") if b in versions}
    text = " and ".join(f"{name} {number}" for name, number in builds.items())
    if not builds:
        return Finding("fbgemm", "fail", "neither fbgemm-gpu nor fbgemm-gpu-cpu is installed", REINSTALL)
    if len(builds) == 2:
        fix = "pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu, then `make install`"
        return Finding("fbgemm", "fail", f"{text}: both builds write the same folder and break each other", fix)
    torch = _minor(versions.get("torch", ""))
    wanted = FBGEMM_FOR_TORCH.get(torch)
    if wanted is None:
        known = ", ".join(f"fbgemm {f} with torch {t}" for t, f in FBGEMM_FOR_TORCH.items())
        return Finding("fbgemm", "warn", f"{text} with torch {torch or 'missing'}: no known pair", f"known are {known}")
    if _minor(next(iter(builds.values()))) != wanted:
        found = f"{text} is compiled for another torch: torch {torch} needs fbgemm {wanted}"
        return Finding("fbgemm", "fail", found, REINSTALL)
    return Finding("fbgemm", "ok", f"{text}, fits torch {torch}")


def _minor(number: str) -> str:
    return ".".join(number.split("+")[0].split(".")[:2])


# Prints a marked line after each import; fbgemm's operators are called once, since a build that does not
# fit this torch may import and then crash.
_PROBE = """
import importlib, json, shutil, sys
def tell(**facts): print("\\n@" + json.dumps(facts), flush=True)
for name in sys.argv[1:]:
    tell(start=name)
    module = importlib.import_module(name)
    if name == "torch":
        import torch
        cuda = torch.cuda.is_available()
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
        tell(gpus=gpus, nccl=".".join(map(str, torch.cuda.nccl.version())) if cuda else "",
             gloo=torch.distributed.is_gloo_available())
    if name == "fbgemm_gpu":
        torch.ops.fbgemm.asynchronous_complete_cumsum(torch.ones(2, dtype=torch.int64))
    tell(done=name)
"""


def check_imports(modules: tuple[str, ...] = MODULES, *, timeout_s: float = 180.0) -> list[Finding]:
    """Do the modules import, in a child process? And which GPUs, NCCL and gloo torch sees there."""
    env = dict(os.environ)
    if not shutil.which("nvidia-smi"):
        env.setdefault("DS_ACCELERATOR", "cpu")
    started = time.monotonic()
    try:
        child = subprocess.run(
            [sys.executable, "-c", _PROBE, *modules], env=env, capture_output=True, text=True, timeout=timeout_s
        )
        code, out, err = child.returncode, child.stdout, child.stderr
    except subprocess.TimeoutExpired as late:
        raw = late.stdout or b""
        code, out, err = None, raw.decode(errors="replace") if isinstance(raw, bytes) else raw, ""
    facts = [json.loads(line[1:]) for line in out.splitlines() if line.startswith("@")]
    begun = [f["start"] for f in facts if "start" in f]
    ended = [f["done"] for f in facts if "done" in f]
    findings = _devices(facts)
    if code == 0:
        return [Finding("imports", "ok", f"{', '.join(ended)} in {time.monotonic() - started:.0f} s"), *findings]
    guilty = begun[-1] if begun else sys.executable
    if code is None:
        how = f"did not finish in {timeout_s:g} s"
    elif code < 0:
        how = f"crashed with {signal.Signals(-code).name}"
    else:
        how = (err.strip().splitlines() or ["failed without a word"])[-1]
    return [Finding("imports", "fail", f"import {guilty}: {how}", REINSTALL), *findings]


def _devices(facts: list[dict[str, object]]) -> list[Finding]:
    seen = next((f for f in facts if "gpus" in f), None)
    if seen is None:
        return []
    gpus = seen["gpus"]
    if isinstance(gpus, list) and gpus:
        if not seen["nccl"]:
            return [Finding("gpus", "fail", f"{len(gpus)} GPUs, but torch has no NCCL", REINSTALL)]
        return [Finding("gpus", "ok", f"{len(gpus)} x {gpus[0]}, NCCL {seen['nccl']}")]
    smi = shutil.which("nvidia-smi")
    if smi and subprocess.run([smi, "-L"], capture_output=True, timeout=60).returncode == 0:
        fix = "install the CUDA build of torch and fbgemm-gpu (cluster/install.sh --fbgemm cuda), or run on CPU"
        return [Finding("gpus", "warn", "nvidia-smi lists GPUs, but torch sees none", fix)]
    if not seen["gloo"]:
        return [Finding("gpus", "fail", "no GPU, and this torch has no gloo to run on CPU", REINSTALL)]
    return [Finding("gpus", "ok", "none: workers run on CPU with gloo")]
