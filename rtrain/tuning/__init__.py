"""Hyperparameter search: `tune` runs a recipe's space on Ray Tune, each trial a distributed run.

Names are loaded when they are asked for: the processes of trials only wait, and import nothing of what trains.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rtrain.tuning.options import Asha, Median, Population, Search
    from rtrain.tuning.result import Trial, Tuned
    from rtrain.tuning.search import tune
    from rtrain.tuning.space import Domain, choice, integers, loguniform, uniform

_HOMES = {
    "options": ("Asha", "Median", "Population", "Search"),
    "result": ("Trial", "Tuned"),
    "search": ("tune",),
    "space": ("Domain", "choice", "integers", "loguniform", "uniform"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Asha", "Domain", "Median", "Population", "Search", "Trial", "Tuned", "choice", "integers", "loguniform", "tune",
    "uniform",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rtrain.tuning' has no attribute {name!r}")
    value = getattr(import_module(f"rtrain.tuning.{_HOME[name]}"), name)
    globals()[name] = value
    return value
