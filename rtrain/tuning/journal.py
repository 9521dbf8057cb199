"""What a search knows, kept in its trials' own folders: any start of it goes on from there.

    {run}/search.json                     the space and what else makes it this search
          spent.json                      hours and worker-hours so far
          trials/trial-0003/trial.json    what was drawn for a trial and how it ended; written before it starts
                            history.jsonl, checkpoints/, ...   the trial is a run like any other
          trials/trial-0003-g2/           in population-based training: the run that goes on from another's checkpoint

Ray Tune's own snapshots are not used: they are pickles, and several files that a kill leaves at several moments.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from rtrain import config
from rtrain.checkpoint.folders import Check
from rtrain.errors import ConfigError
from rtrain.report.facts import SEARCH, TRIAL, TRIALS
from rtrain.run import Run
from rtrain.storage import Folder
from rtrain.training import history
from rtrain.tuning.options import Search
from rtrain.tuning.space import Drawn, Space

Ended = Literal["", "finished", "stopped", "failed", "refused"]
SPENT = "spent.json"
MAY_CHANGE = ("trials", "concurrent", "hours", "cost", "price")
"""Of `Search`: what a later start of the same search may have otherwise."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One trial, as the journal knows it."""

    number: int
    drawn: Drawn
    changes: Mapping[str, Any]
    """What the recipe's fields are set to, as JSON holds it (`space.storable`)."""
    run: str = ""
    """Name of the run that it is now; of a population's member another one after each turn."""
    source: str = ""
    """Checkpoint of another trial that this run went on from."""
    ended: Ended = ""
    """Empty: it is under way, or was when the search was."""
    error: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    """Validation metrics of its best step, `parameters` and `seconds`."""
    best_step: int | None = None
    step: int = 0

    @property
    def name(self) -> str:
        """Of its folder."""
        return folder_of(self.number)


def folder_of(number: int) -> str:
    """A trial's, among `TRIALS`."""
    return f"trial-{number:04d}"


class Journal:
    """All trials of one search."""

    def __init__(self, run: Run, check: Check = lambda: None, only: Iterable[int] | None = None):
        """`only`: numbers of the trials that are read; none: of all."""
        self.run, self.check = run, check
        self.folder = Folder(run.folder)
        self.trials = self.folder.child(TRIALS)
        self.entries: dict[int, Entry] = {}
        for name in self.trials.names() if only is None else map(folder_of, only):
            if self.trials.child(name).exists(TRIAL):
                entry = Entry(**self.trials.child(name).read_json(TRIAL))
                self.entries[entry.number] = entry
        self.entries = dict(sorted(self.entries.items()))

    def again(self, number: int) -> Entry:
        """A trial as its folder has it: what it is run as, its own process writes there."""
        entry = Entry(**self.trials.child(self.entries[number].name).read_json(TRIAL))
        self.entries[number] = entry
        return entry

    def write(self, entry: Entry) -> Entry:
        """Keep what is known of a trial.

        Raises:
            Fenced: another process has taken the search over.
        """
        self.check()
        entry = replace(entry, run=entry.run or entry.name)
        self.trials.child(entry.name).write_json(TRIAL, asdict(entry))
        self.entries[entry.number] = entry
        return entry

    @property
    def open(self) -> list[Entry]:
        """Trials that have not ended, in their order."""
        return [entry for entry in self.entries.values() if not entry.ended]

    def points(self, entry: Entry) -> list[dict[str, Any]]:
        """What a trial's run has reported so far: `step` and validation metrics, in order."""
        lines = history.read(self.trials.child(entry.run))
        return [line for line in lines if line["kind"] == "valid"]

    def spent(self) -> Mapping[str, float]:
        """Seconds of the search, of its workers, and of the longest interval, over all starts so far."""
        nothing = {"seconds": 0.0, "worker_seconds": 0.0, "longest": 0.0}
        return nothing | (self.folder.read_json(SPENT) if self.folder.exists(SPENT) else {})

    def open_as(self, space: Space, search: Search, objectives: Mapping[str, str]) -> None:
        """Make the folder this search's, or go on with it.

        Raises:
            ConfigError: it is another search's, or a run's.
        """
        now = {
            "space": {key: str(domain) for key, domain in space.items()},
            "search": {k: v for k, v in config.flatten(search).items() if k not in MAY_CHANGE},
            "run": config.to_dict(self.run),
            "objectives": dict(objectives),
        }
        if self.folder.exists(SEARCH):
            before = self.folder.read_json(SEARCH)
            if changed := _changes(before, now, self.run):
                raise ConfigError(
                    f"search {self.run.name!r} exists, and was begun otherwise: {'; '.join(changed[:5])}. Give this "
                    "one a name of its own (--name), go back to the stored values, or start anew with --fresh, which "
                    "moves the earlier one aside"
                )
        elif self.folder.exists("run.json") or self.entries:
            raise ConfigError(f"tune: {self.run.folder} is a run's folder. Give the search a name of its own (--name)")
        self.check()
        self.folder.write_json(SEARCH, now)


MACHINE = (
    "storage", "cluster.memory_gb_per_worker", "cluster.wait_s", "faults", "log_every_steps", "tracking",
    "handoff.port",
)  # fmt: skip
"""Fields of the run that leave a search the same one."""


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], run: Run) -> list[str]:
    found = []
    for part in ("space", "search"):
        for key in sorted(before[part].keys() | now[part].keys()):
            old, new = before[part].get(key, "not there"), now[part].get(key, "not there")
            if old != new:
                found.append(f"{part} {key}: {old} -> {new}")
    return found + [c for c in config.diff(config.from_dict(before["run"]), run) if not c.startswith(MACHINE)]
