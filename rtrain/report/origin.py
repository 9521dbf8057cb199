"""How a run came about: from what, by which starts, of which code, and what came of each."""

from collections.abc import Mapping, Sequence
from typing import Any

from rtrain.report.facts import Facts, code_of

SHOWN = 12
"""Starts that the page shows: the last ones."""


def origin(facts: Facts) -> dict[str, Any]:
    """What the manifest tells; no rows of a run that an older rtrain trained."""
    rows: list[tuple[str, str]] = []
    if facts.parent:
        rows.append(("made from", spell_parent(facts.parent)))
    hidden = len(facts.starts) - SHOWN
    if hidden > 0:
        rows.append(("earlier starts", f"{hidden}, in manifest.json"))
    before = ""
    for start in facts.starts[-SHOWN:]:
        code = spell_code(start)
        outcome = start.get("outcome")
        if outcome is None and start is facts.starts[-1]:
            outcome = _by_result(facts.result)
        told = f"{start.get('at', '')}, {_spell_outcome(outcome)}"
        told += "; the code as before" if code == before else f"; {code}"
        before = code
        rows.append((f"start {start.get('number', '')}", told))
    return {"rows": rows}


def spell_parent(parent: Mapping[str, Any]) -> str:
    """`a fork of trial-3 at step 400`."""
    kind = str(parent.get("kind", ""))
    if kind == "fine-tune":
        files = parent.get("vectors") or {}
        return "first rows of tables: " + ", ".join(f"{table} of {file}" for table, file in files.items())
    said = f"a {kind} of {parent.get('run') or parent.get('search') or parent.get('checkpoint') or 'unknown'}"
    if parent.get("number") is not None:
        said += f", its number {parent['number']}"
    return said + (f", at step {parent['step']}" if parent.get("step") is not None else "")


def parent_name(parent: Mapping[str, Any]) -> str:
    """The name of the run or search that a run was made from, of a trial its search; empty: from none."""
    whole = str(parent.get("search") or parent.get("run") or parent.get("checkpoint") or "")
    return whole.rstrip("/").rpartition("/")[2]


def spell_code(start: Mapping[str, Any]) -> str:
    """`recipe at 0123456789ab (main) with changes (manifest/ab12.diff)`, and of rtrain where that is another one."""
    recipe, own = code_of(start, "recipe"), code_of(start, "rtrain")
    said = f"recipe {_spell_tree(recipe)}"
    if own.get("commit") and own.get("root") != recipe.get("root"):
        said += f", rtrain {_spell_tree(own)}"
    return said


def code_identity(starts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Commit and changes of the last start's work trees: two runs with the same had the same code."""
    trees = [code_of(starts[-1], whose) for whose in ("recipe", "rtrain")] if starts else []
    found = tuple(str(tree.get(key) or "") for tree in trees for key in ("commit", "changes"))
    return found if any(found) else ()


def _spell_tree(code: Mapping[str, Any]) -> str:
    if not code.get("commit"):
        return f"of no commit ({code.get('why') or 'nothing is known of it'})"
    said = f"at {str(code['commit'])[:12]}"
    if code.get("branch"):
        said += f" ({code['branch']})"
    if code.get("changes"):
        said += f" with changes ({code.get('diff')}{', cut' if code.get('cut') else ''})"
    elif code.get("untracked"):
        said += f" beside {code['untracked']} untracked"
    return said


def _by_result(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the result says of the start that wrote it: the page is written before that start has ended."""
    if not result:
        return None
    served = result.get("served") is not False
    reason = str(result.get("stop") or "") if served else "the served answers differ from the trainer's"
    return {"state": "finished" if served else "failed", "step": result.get("steps"), "reason": reason}


def _spell_outcome(outcome: object) -> str:
    if not isinstance(outcome, dict):
        return "going on, or killed"
    at = f" at step {outcome['step']}" if outcome.get("step") is not None else ""
    return f"{outcome.get('state')}{at}" + (f": {outcome['reason']}" if outcome.get("reason") else "")
