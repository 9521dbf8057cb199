"""Who had which version while one was tried: by the decisions in the audit log, which are all that it depends on."""

import math
from datetime import datetime
from functools import partial

from rtrain.endpoint.routing import place, salt_of
from rtrain.errors import UserError
from rtrain.evaluation.online import Assigned, Window
from rtrain.release.audit import AuditLog

SHARED = ("begin", "advance", "hold")
ENDED = ("champion", "take back")


def assigned_of(log: AuditLog, model: str, version: int) -> Assigned:
    """Of the last time that a version was tried by an endpoint.

    A change is everywhere half a second after the log has it. A candidate that fails has the champion answer, so what
    somebody was assigned is not always what answered: groups are compared as they were drawn.

    Raises:
        UserError: it was not tried, its trial is of an rtrain that did not say beside which version, or endpoints of
            several regions tried it at once.
    """
    windows, running, champion = list[Window](), None, 0
    for entry in log.entries():
        told = entry.details
        if told.get("endpoint") != model or told.get("version") != version or entry.what not in SHARED + ENDED:
            continue
        if "since" not in told:
            raise UserError(f"{model}:{version}: entry {entry.number} of the log does not say beside which version")
        at = datetime.fromisoformat(told["since"]).timestamp()
        if entry.what == "begin":
            if running:
                raise UserError(
                    f"{model}:{version}: it was tried twice at once (entry {entry.number} of the log), in several "
                    "regions. Give their events a column of the version, and --by"
                )
            windows, champion = [], int(told["champion"])
        elif running:
            windows.append(Window(start=running[0], stop=at, share=running[1]))
        running = (at, float(told["share"])) if entry.what in SHARED else None
    if running:
        windows.append(Window(start=running[0], stop=math.inf, share=running[1]))
    # Nobody had it: not an experiment yet.
    windows = [of for of in windows if of.share > 0]
    if not windows:
        raise UserError(f"{model}:{version}: the log {log.folder.uri!r} has no trial of it in which it had a share")
    salt = salt_of(model, version)
    return Assigned(new=str(version), old=str(champion), windows=tuple(windows), place=partial(_place, salt))


def _place(salt: str, name: str) -> float:
    return place(f"{salt}:{name}")
