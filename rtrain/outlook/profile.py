"""What a kind of device and its links can do, as figures that a person can look up, or measure, and correct.

A profile is a JSON file of exactly the fields of `Profile`. Those of `profiles/` are named without their path.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from rtrain.errors import ConfigError, did_you_mean

FOLDER = Path(__file__).with_name("profiles")
PRECISIONS = ("float32", "tf32", "bfloat16")
"""Those of `mesh.Precision`."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One kind of device, a node of them, and the network between nodes. All rates are a device's own."""

    name: str
    accelerator: bool
    """Whether it is a GPU."""
    flops: Mapping[str, float]
    """Precision -> peak FLOP/s of dense products, no sparsity: float32, tf32, bfloat16, and float8 if it has it."""
    memory_bytes: float
    memory_bandwidth: float
    """Bytes/s."""
    devices_per_node: int
    link_bandwidth: float
    """Bytes/s that a device sends to others of its node, in one direction."""
    link_latency_s: float
    """Of one message between devices of a node."""
    network_bandwidth: float
    """Bytes/s that a device sends to other nodes, in one direction."""
    network_latency_s: float
    """Of one message between nodes."""
    efficiency: tuple[tuple[float, float], ...]
    """Points (size, fraction of the peak), in between on a line over the size's logarithm. The size of a product of
    [m, k] and [k, n] is the harmonic mean of m, k and n: see `rtrain.outlook.flops.Kernel.size`."""
    attention_efficiency: float
    """Fraction of the peak that a fused attention kernel reaches at most."""
    memory_efficiency: float
    """Fraction of `memory_bandwidth` that kernels without a product reach."""
    link_efficiency: float
    """Fraction of `link_bandwidth` and `network_bandwidth` that collectives reach."""
    launch_s: float
    """Host's time for each kernel that it asks for; a step takes as long as host or device, whichever is longer."""
    tables_host_s: float
    """Host's time a step for embedding tables, as TorchRec looks them up and updates them."""
    sources: Mapping[str, str]
    """Where figures come from, or "stated assumption"."""

    @cached_property
    def _curve(self) -> tuple[tuple[float, float], ...]:
        return tuple((math.log(size), fraction) for size, fraction in self.efficiency)

    def efficiency_of(self, size: float) -> float:
        """Fraction of the peak that a product of this size reaches; outside the points that of the nearest one."""
        at = math.log(max(size, 1.0))
        curve = self._curve
        if at <= curve[0][0]:
            return curve[0][1]
        for (low, before), (high, after) in pairwise(curve):
            if at <= high:
                return before + (after - before) * (at - low) / (high - low)
        return curve[-1][1]

    def peak(self, precision: str) -> float:
        """FLOP/s.

        Raises:
            ConfigError: it has none of this precision.
        """
        if precision not in self.flops:
            raise ConfigError(
                f"--hardware {self.name}: flops has no figure for {precision!r}, which parallel.precision asks for. "
                f"It has {', '.join(self.flops)}"
            )
        return self.flops[precision]


def names() -> list[str]:
    """Profiles that come with rtrain."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def profile(name_or_path: str) -> Profile:
    """A profile that comes with rtrain, by its name, or one of your own, by its file's path.

    Raises:
        ConfigError: no such profile; a figure that is missing, unknown or of the wrong sign; names file and figure.
    """
    path = Path(name_or_path)
    if path.suffix != ".json":
        path = FOLDER / f"{name_or_path}.json"
        if name_or_path not in names():
            near = did_you_mean(name_or_path, names()) or f". There are {', '.join(names())}"
            raise ConfigError(f"--hardware: no profile {name_or_path!r}{near}; or give the path of a .json of your own")
    try:
        stored = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"--hardware: {path} cannot be read ({error.strerror}). Check the path") from error
    except ValueError as error:
        raise ConfigError(f"--hardware: {path} is not JSON ({error}). Compare it with rtrain's h100.json") from error
    return _checked(stored, path)


def _checked(stored: Any, path: Path) -> Profile:
    if not isinstance(stored, dict):
        raise ConfigError(f"--hardware: {path} holds no object of figures. Compare it with rtrain's h100.json")
    known = [f.name for f in fields(Profile) if f.name != "name"]
    for figure in stored:
        if figure not in known:
            near = did_you_mean(figure, known) or f". Known: {', '.join(known)}"
            raise ConfigError(f"--hardware: {path}: unknown figure {figure!r}{near}")
    if missing := [figure for figure in known if figure not in stored]:
        raise ConfigError(f"--hardware: {path}: figure {missing[0]!r} is missing. Compare it with rtrain's h100.json")
    for figure in known:
        if figure not in ("accelerator", "flops", "efficiency", "sources"):
            least_0 = figure in ("link_latency_s", "network_latency_s", "launch_s", "tables_host_s")
            _number(stored[figure], path, figure, least_0=least_0, most_1=figure.endswith("efficiency"))
    if type(stored["accelerator"]) is not bool:
        raise ConfigError(f"--hardware: {path}: accelerator must be true or false, got {stored['accelerator']!r}")
    if type(stored["devices_per_node"]) is not int:
        raise ConfigError(f"--hardware: {path}: devices_per_node must be whole, got {stored['devices_per_node']!r}")
    for figure in ("flops", "sources"):
        if not isinstance(stored[figure], dict):
            raise ConfigError(f"--hardware: {path}: {figure} must be an object, got {stored[figure]!r}")
    for precision in PRECISIONS:
        if precision not in stored["flops"]:
            raise ConfigError(f"--hardware: {path}: figure 'flops.{precision}' is missing. Give its peak FLOP/s")
    for precision, value in stored["flops"].items():
        if precision not in (*PRECISIONS, "float8"):
            raise ConfigError(f"--hardware: {path}: unknown figure 'flops.{precision}'. Known: {', '.join(PRECISIONS)}")
        _number(value, path, f"flops.{precision}")
    return Profile(**stored | {"name": path.stem, "efficiency": _curve(stored["efficiency"], path)})


def _curve(points: Any, path: Path) -> tuple[tuple[float, float], ...]:
    here = f"--hardware: {path}: efficiency"
    if not isinstance(points, list) or not points or not all(isinstance(p, list) and len(p) == 2 for p in points):
        raise ConfigError(f"{here} must be a list of [size, fraction], got {points!r}")
    for size, fraction in points:
        _number(size, path, "efficiency", least_0=False)
        _number(fraction, path, "efficiency", most_1=True)
    if any(after[0] <= before[0] for before, after in pairwise(points)):
        raise ConfigError(f"{here}: its sizes must rise from point to point, got {[p[0] for p in points]}")
    return tuple((float(size), float(fraction)) for size, fraction in points)


def _number(value: Any, path: Path, figure: str, *, least_0: bool = False, most_1: bool = False) -> None:
    number = type(value) in (int, float) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not least_0) or (most_1 and value > 1):
        asked = "a number of at least 0" if least_0 else "above 0 and at most 1" if most_1 else "a number above 0"
        raise ConfigError(f"--hardware: {path}: {figure} must be {asked}, got {value!r}")
