"""TEMPORARY (lead): to be overwritten by the helper who owns this file."""
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol
@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where curves are sent."""
    to: tuple[Literal["tensorboard", "wandb", "mlflow", "jsonl"], ...] = ("tensorboard",)
    """Trackers."""
class Tracker(Protocol):
    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def finish(self, summary: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...
def open_trackers(*a: Any, **k: Any) -> list[Tracker]:
    return []
