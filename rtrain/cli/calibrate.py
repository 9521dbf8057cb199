"""`rtrain calibrate`: this machine as a profile for `plan --hardware`."""

import argparse
import json
import sys
from pathlib import Path

from rtrain.cli.verb import Argument, Verb, answer
from rtrain.errors import ConfigError

EXAMPLE = """\
example: measure this machine while nothing else runs on it, then ask what a run takes on 16 such

    rtrain calibrate mine.json
    python recipes/gpt_stdlib.py plan --hardware mine.json --search --devices 16"""


def _calibrate(options: argparse.Namespace) -> int:
    import psutil
    import torch

    from rtrain.outlook.calibrate import calibrate
    from rtrain.outlook.profile import profile

    out = Path(options.out)
    if out.suffix != ".json":
        raise ConfigError(f"calibrate: {options.out!r} does not end in .json, by which plan --hardware knows a file")
    gpus = torch.cuda.device_count()
    try:
        like = profile(options.like or ("h100" if gpus else "cpu"))
    except ConfigError as error:
        raise ConfigError(str(error).replace("--hardware", "--like", 1)) from None
    ranks = options.ranks if options.ranks is not None else gpus or min(4, psutil.cpu_count(logical=False) or 1)
    if ranks < 1 or ranks > max(gpus, psutil.cpu_count() or 1 if not gpus else 0):
        raise ConfigError(f"--ranks: must be from 1 to the devices of this machine, got {ranks}")
    try:  # before minutes of work
        out.parent.mkdir(parents=True, exist_ok=True)
        out.touch()
    except OSError as error:
        raise ConfigError(
            f"calibrate: {options.out!r} cannot be written ({error.strerror}). Give another path"
        ) from None
    found = calibrate(like, ranks=ranks, say=lambda text: print(f"calibrate: {text}", file=sys.stderr, flush=True))
    out.write_text(json.dumps(found, indent=1) + "\n")
    checked = profile(str(out))
    flops = ", ".join(f"{name} {of / 1e12:.3g}" for name, of in checked.flops.items())
    lines = [
        f"{out}: {flops} TFLOP/s; memory {checked.memory_bandwidth / 1e9:.3g} GB/s; "
        f"{checked.launch_s * 1e6:.3g} us to launch a kernel",
        f"links {checked.link_bandwidth / 1e9:.3g} GB/s, {checked.link_latency_s * 1e6:.3g} us a message",
        *(f"  {figures}: {source}" for figures, source in checked.sources.items()),
    ]
    answer(options, {"profile": str(out), **found}, "\n".join(lines))
    return 0


CALIBRATE = Verb(
    "calibrate",
    "measure this machine: products, copies, kernels, collectives, as a profile for plan --hardware",
    (
        Argument("out", metavar="FILE.json", help="the profile; an earlier one is replaced"),
        Argument("--like", metavar="PROFILE", help="where figures come from that are not measured here (network)"),
        Argument("--ranks", type=int, metavar="N", help="processes whose collectives are measured (default: all GPUs)"),
    ),
    _calibrate,
    example=EXAMPLE,
)
