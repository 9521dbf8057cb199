"""Which trials are best: by one objective, or such that none is better in all of several."""

from collections.abc import Mapping, Sequence

from rtrain.tuning.journal import Entry


def ranked(entries: Sequence[Entry], objectives: Mapping[str, str]) -> list[Entry]:
    """Trials with values, best first: those of the front, then the others, each by the first objective.

    Of equal ones the earlier trial comes first. A trial that was stopped stands behind all that finished: its value is
    of fewer steps.
    """
    there = [entry for entry in entries if all(name in entry.values for name in objectives)]
    name, mode = next(iter(objectives.items()))
    best = {entry.number for entry in front(entries, objectives)}

    def order(entry: Entry) -> tuple[bool, bool, float, int]:
        value = entry.values[name]
        return entry.ended != "finished", entry.number not in best, -value if mode == "max" else value, entry.number

    return sorted(there, key=order)


def front(entries: Sequence[Entry], objectives: Mapping[str, str]) -> list[Entry]:
    """Finished trials that no other one is at least as good as in all objectives and better than in one."""
    there = [e for e in entries if e.ended == "finished" and all(name in e.values for name in objectives)]
    signed = {
        entry.number: [entry.values[name] * (1 if mode == "max" else -1) for name, mode in objectives.items()]
        for entry in there
    }

    def beaten(entry: Entry) -> bool:
        mine = signed[entry.number]
        return any(all(a >= b for a, b in zip(other, mine, strict=True)) and other != mine for other in signed.values())

    return [entry for entry in there if not beaten(entry)]
