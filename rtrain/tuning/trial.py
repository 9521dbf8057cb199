"""One trial as Ray Tune sees it: a process that waits, and so imports nothing of what trains."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray import tune

NUMBER, NEEDS = "trial_number", "trial_needs"
"""Keys of its Tune config beside the fields that it sets; as JSON, what it takes of the cluster and its `workers`."""
STEP = "step"
NOBODY = -1
ANSWER_S = 600.0
"""Seconds within which the gate says who a trial is."""


@dataclass(frozen=True)
class Pointer:
    """What Tune keeps as a trial's checkpoint: where the run's own lies."""

    number: int = NOBODY
    step: int = 0
    last: Mapping[str, Any] = field(default_factory=dict)
    """What it reported there."""


class Trial(tune.Trainable):
    """Starts the trial's run at its first step, and gives one report of it a step."""

    def setup(self, config: dict[str, Any], gate: Any = None) -> None:
        """`gate`: the actor."""
        self.gate = gate
        self.token = ""
        self.pointer = Pointer()

    def step(self) -> dict[str, Any]:
        """Report the next interval of the run; start it where it does not go on."""
        if not self.token:
            token = uuid4().hex
            if not self._launched(token):
                return self._closed()
            self.token = token
        heard = self._next()
        if "report" in heard:
            last = {**heard["report"], NUMBER: self.pointer.number, "finished": False}
            self.pointer = replace(self.pointer, step=int(last[STEP]), last=last)
            if not last["last"]:
                return last
            heard = self._next()
        if "closed" in heard:
            return self._closed()
        return {**self.pointer.last, **heard["result"], NUMBER: self.pointer.number, "finished": True, "done": True}

    def _next(self) -> Mapping[str, Any]:
        """What the gate knows next of the run, an interval later."""
        heard: Mapping[str, Any] = ray.get(self.gate.next.remote(self.trial_id, self.token))
        if "error" in heard:
            raise RuntimeError(heard["error"])
        return heard

    def _launched(self, token: str) -> bool:
        """Begin the run; of a population's member that took another's place, one from that one's checkpoint."""
        # Tune copies a trial's config with its checkpoint: who this is, it says the first time alone.
        who = self.gate.number_of.remote(self.trial_id, self.config[NUMBER])
        number = ray.get(who, timeout=ANSWER_S)
        source = asdict(self.pointer) if self.pointer.number not in (NOBODY, number) else {}
        self.pointer = replace(self.pointer, number=number)
        needs = json.loads(self.config[NEEDS])
        what = {"number": number, "drawn": dict(self.config), "source": source, "seen": self.pointer.step}
        # As long as it takes until there is room.
        begun = self.gate.launch.remote(self.trial_id, token, workers=needs.pop("workers"), needs=needs, **what)
        return bool(ray.get(begun))

    def _closed(self) -> dict[str, Any]:
        return {STEP: self.pointer.step, **self.pointer.last, "finished": False, "closed": True, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The pointer alone: the bytes are in the run's own folder."""
        (Path(checkpoint_dir) / "pointer.json").write_text(json.dumps(asdict(self.pointer)))

    def load_checkpoint(self, checkpoint: str | dict[str, Any] | None) -> None:
        """Its own, or, of a population's member, another one's."""
        self.pointer = Pointer(**json.loads((Path(str(checkpoint)) / "pointer.json").read_text()))

    def cleanup(self) -> None:
        """Tune is done with it, or pauses it: the run ends between two intervals."""
        if self.token:
            self.gate.end.remote(self.trial_id, self.token)
