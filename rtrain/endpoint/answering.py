"""How a version of an endpoint answers: as the one before it, but for what is said."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from rtrain import config
from rtrain.endpoint.state import Deployed
from rtrain.language.decoding import Decoding
from rtrain.serving.scale import Scale
from rtrain.stages.config import TwoStages

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Answering:
    """Replicas, decoding and stages."""

    scale: Scale
    decoding: Decoding | None
    """Of a language model; none: by the defaults, or it is another model."""
    stages: TwoStages | None
    """That it is one of; none: it answers alone."""

    @classmethod
    def of(cls, before: Deployed | None) -> "Answering":
        """As a version that is, or was, deployed; none: by the defaults."""
        kept = (before.scale, before.decoding, before.stages) if before else (None, None, None)
        scale, decoding, stages = (config.from_dict(one) if one else None for one in kept)
        return cls(scale=scale or Scale(), decoding=decoding, stages=stages)

    def but(
        self,
        replicas: int | Scale | Mapping[str, Any] | None = None,
        decoding: Decoding | Mapping[str, Any] | None = None,
        stages: TwoStages | Mapping[str, Any] | None = None,
    ) -> "Answering":
        """With what is said: a whole one takes the place of what was, a mapping changes its fields alone.

        Raises:
            ConfigError: a field that is not there, or a value that does not fit it or the others.
        """
        if isinstance(replicas, int):
            replicas = {"least": replicas, "most": None}
        return Answering(
            scale=_over(self.scale, replicas, Scale) or self.scale,
            decoding=_over(self.decoding, decoding, Decoding),
            stages=_over(self.stages, stages, TwoStages),
        )

    def to_json(self) -> dict[str, Any]:
        """As `Deployed` has them."""
        of = {"scale": self.scale, "decoding": self.decoding, "stages": self.stages}
        return {name: config.to_dict(one) if one else None for name, one in of.items()}


def _over(before: T | None, said: T | Mapping[str, Any] | None, default: Callable[[], T]) -> T | None:
    if said is None:
        return before
    return config.override(before or default(), said) if isinstance(said, Mapping) else said
