"""How a version of an endpoint answers: as the one before it, but for what is said."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_origin, get_type_hints

from rtrain import config
from rtrain.endpoint.canary import Canary
from rtrain.endpoint.state import Deployed
from rtrain.errors import UserError
from rtrain.language.decoding import Decoding
from rtrain.serving.scale import Scale, always
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
    def after(
        cls,
        before: Deployed | None,
        replicas: int | Scale | Mapping[str, Any] | None = None,
        decoding: Decoding | Mapping[str, Any] | None = None,
        stages: TwoStages | Mapping[str, Any] | None = None,
    ) -> "Answering":
        """As a version that is, or was, deployed (none: by the defaults), but for what is said.

        A whole one takes the place of what was, a mapping changes its fields alone.

        Raises:
            ConfigError: a field that is not there, a value that does not fit it or the others, or a class that this
                process does not know, of what is not said.
        """
        if isinstance(replicas, int):
            replicas = always(replicas)
        kept = (before.scale, before.decoding, before.stages) if before else (None, None, None)
        return cls(
            scale=_after(kept[0], replicas, Scale) or Scale(),
            decoding=_after(kept[1], decoding, Decoding),
            stages=_after(kept[2], stages, TwoStages),
        )

    def is_of(self, version: Deployed) -> bool:
        """Whether one that is deployed answers so; in JSON's own types, for a conductor may have read it."""
        kept = {"scale": version.scale, "decoding": version.decoding, "stages": version.stages}
        return json.dumps(self.to_json(), sort_keys=True) == json.dumps(kept, sort_keys=True)

    def of_all_at_once(self, version: Deployed, canary: Canary, endpoint: str) -> str:
        """For the log the model beside a version that goes on with another one, which everybody has then; empty: none.

        Raises:
            UserError: it does, and the release is to go share by share.
        """
        stages = self.stages.having(version.export) if self.stages and version.stages else None
        had = version.stages or {}
        changed = [name for name in ("retriever", "ranker") if stages and getattr(stages, name) != had[name]]
        if changed and canary.shares[0] < 1:
            raise UserError(
                f"endpoint {endpoint!r}: version {version.number} answers already, and would have another {changed[0]} "
                "for everybody at once: what is tried share by share is another version. Release one together with "
                "it, or say --steps 100"
            )
        return f" ({changed[0]} {getattr(stages, changed[0])}, was {had[changed[0]]})" if changed else ""

    def to_json(self) -> dict[str, Any]:
        """As `Deployed` has them."""
        of = {"scale": self.scale, "decoding": self.decoding, "stages": self.stages}
        return {name: config.to_dict(one) if one else None for name, one in of.items()}


def _after(kept: dict[str, Any] | None, said: T | Mapping[str, Any] | None, default: Callable[[], T]) -> T | None:
    if said is not None and not isinstance(said, Mapping):
        return said
    before: T = default()
    if kept:
        # What another is said in place of may be gone: a guard's module, a draft's folder.
        words = [name for name, hint in get_type_hints(type(before)).items() if get_origin(hint) is Literal]
        gone = [name for name in said or () if isinstance(kept.get(name), dict | str) and name not in words]
        before = config.from_dict(kept | {name: config.to_dict(getattr(before, name)) for name in gone})
    if said is None:
        return before if kept else None
    return config.override(before, said)
