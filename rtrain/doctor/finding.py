"""A finding and how it is shown: the only thing that the doctor's checks return."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at: its `status`, what was `found`, and how to `fix` it (empty when `ok`)."""

    name: str
    status: Status
    found: str
    fix: str = ""


def render(findings: Iterable[Finding]) -> str:
    """Aligned text, a line a finding (and a second one with its fix), then a line that sums up."""
    findings = list(findings)
    width = max((len(f.name) for f in findings), default=0)
    marks = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}
    lines = []
    for f in findings:
        lines.append(f"{marks[f.status]}  {f.name:<{width}}  {f.found}")
        if f.fix and f.status != "ok":
            lines.append(f"      {'':<{width}}  fix: {f.fix}")
    fails, warns = (sum(f.status == s for f in findings) for s in ("fail", "warn"))
    verdict = "the main job would fail" if fails else "the main job can run"
    return "\n".join([*lines, f"{len(findings)} findings, {fails} fail, {warns} warn: {verdict}"])


def to_json(findings: Iterable[Finding]) -> str:
    """One line: `{"ok": true, "fail": 0, "warn": 1, "findings": [{"name": ..., "status": ...}, ...]}`."""
    findings = list(findings)
    fails, warns = (sum(f.status == s for f in findings) for s in ("fail", "warn"))
    return json.dumps({"ok": not fails, "fail": fails, "warn": warns, "findings": [asdict(f) for f in findings]})
