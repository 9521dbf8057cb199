"""A model card: what a finished run's model is for, what it learned from, how good it is and where, and its making.

After Mitchell et al. 2019, "Model Cards for Model Reporting". All of it is read from what run and gate recorded, but
for its intended use, which a person says.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from rtrain.errors import UserError
from rtrain.metrics.names import is_of_slice
from rtrain.release.finished import Finished
from rtrain.release.gate import PASSED, REFUSED, verdict_of
from rtrain.tracking import mask_text
from rtrain.training.surroundings import SURROUNDINGS

CARD = "card.md"


def card(run: str, use: str) -> str:
    """The card in Markdown.

    Args:
        run: the run's folder, or its export's.
        use: what the model is to be used for, and what not.

    Raises:
        UserError: no finished run there, or one without an export; no use is given.
    """
    if not use.strip():
        raise UserError("card: its intended use is empty. Say what the model is for, and what it is not for")
    of = Finished.read(run)
    config = of.folder.read_json("run.json")
    parts = {
        f"{of.name}, step {of.result['best_step']}": _what(of, config),
        "Intended use": [use.strip()],
        "Data": _data(config),
        "Quality": _quality(of.result),
        "Slices": _slices(of.result, config),
        "Gate": _gate(of),
        "Lineage": _lineage(of),
    }
    titles = [f"{'#' * (1 + (number > 0))} {title}" for number, title in enumerate(parts)]
    return (
        "\n\n".join("\n".join([title, "", *lines]) for title, lines in zip(titles, parts.values(), strict=True)) + "\n"
    )


def write_card(run: str, use: str) -> str:
    """Leave the card beside the run's export; its URI. As `card`."""
    text, of = card(run, use), Finished.read(run)
    of.export.write(CARD, text.encode())
    return f"{of.export.uri}/{CARD}"


def _what(of: Finished, config: Mapping[str, Any]) -> list[str]:
    lines = [f"A {_kind(config['model'])} of rtrain {of.head['rtrain']}: {_spelled(config['model'])}."]
    schema = config["data"].get("schema")
    if of.kind == "writes text":
        told = of.head["language"]
        text = f"It goes on from a text of at most {told['context']:,} tokens, its own among them"
        return [*lines, f"{text}; its vocabulary has {told['vocab']:,}."]
    if not (of.kind == "ranks rows" and schema):
        return [*lines, "It answers a user's history with items of its catalogue."]
    labels = [schema["label"], *schema["more_labels"]]
    says = ", ".join(
        f"{one['name']} ({'a number' if one['kind'] == 'number' else 'the probability of 1'})" for one in labels
    )
    return [*lines, f"It answers a row with {says}."]


def _data(config: Mapping[str, Any]) -> list[str]:
    data = config["data"]
    lines = [f"{_kind(data)} of `{mask_text(str(data.get('source', '')))}`."]
    if split := data.get("split"):
        lines.append(f"Parted by {_kind(split)}: {_spelled(split)}.")
    features = (data.get("schema") or {}).get("features", [])
    if features:
        lines += ["", *_table(("feature", "kind", "describes", "what stands for a null"), map(_feature, features))]
    return lines


def _feature(of: Mapping[str, Any]) -> tuple[str, ...]:
    known = of.get("hashed") or of.get("vocabulary") or of.get("vocabulary_file")
    missing = "a row of its own" if known else "refused"
    if _kind(of) in ("IdList", "IdSequence", "Text"):
        missing = "an empty one"
    return of["name"], _kind(of), of.get("entity", ""), str(of["missing"]) if of.get("missing") is not None else missing


def _quality(result: Mapping[str, Any]) -> list[str]:
    baselines = result.get("baselines") or []
    names = [name for name in result["test"] if not is_of_slice(name)]
    head = ("metric", "test", "validation", *(one["name"] for one in baselines))
    rows = (
        (
            name,
            _number(result["test"][name]),
            _number(result["valid"].get(name)),
            *(_against(one, name) for one in baselines),
        )
        for name in names
    )
    note = (
        "Beside a baseline stands the 95 % interval of what the model has more, by a paired bootstrap on the test rows."
    )
    return [*_table(head, rows), *(["", note] if baselines else [])]


def _against(baseline: Mapping[str, Any], name: str) -> str:
    interval = (baseline.get("intervals") or {}).get(name)
    more = f" ({interval['low']:+.4f} to {interval['high']:+.4f})" if interval else ""
    return _number(baseline["test"].get(name)) + more


def _slices(result: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    found = [(name, _number(value)) for name, value in result["test"].items() if is_of_slice(name)]
    if found:
        return _table(("metric of the test rows [slice]", "value"), found)
    asked = config["evaluation"]["slices"]
    return ["None of those asked for has rows." if asked else "None was measured: `evaluation.slices` names no column."]


def _gate(of: Finished) -> list[str]:
    verdict = verdict_of(of)
    if verdict is None:
        return ["These files passed no gate (`rtrain gate`)."]
    against = f"against {verdict.champion['run']}" if verdict.champion else "without a champion to compare with"
    head = f"{PASSED if verdict.passed else REFUSED} on {verdict.at}, {against}, asked by {verdict.by}."
    rows = ((one.check, PASSED if one.passed else REFUSED, one.said) for one in verdict.decisions)
    return [head[0].upper() + head[1:], "", *_table(("check", "", "why"), rows)]


def _lineage(of: Finished) -> list[str]:
    result = of.result
    weights = sum(of.export.size(name) for name in of.head["files"] if name.startswith("model-"))
    rows = [
        ("run", of.name),
        ("checkpoint", mask_text(str(result["checkpoint"]))),
        ("export", mask_text(of.export.uri)),
        ("sha256 of export.json", of.digest),
        ("bytes of weights", f"{weights:,}"),
        ("config, sha256", hashlib.sha256(of.folder.read("run.json")).hexdigest()),
        ("commit", str(result.get("commit") or "not known")),
        ("command", f"`{result['command']}`" if result.get("command") else "not known"),
        ("trained", f"{result['steps']:,} steps on {result['world_size']} ranks, {result['seconds']:,} s"),
        ("stopped", str(result.get("stop") or "as planned")),
    ]
    if of.folder.exists(SURROUNDINGS):
        about = of.folder.read_json(SURROUNDINGS)
        rows.append(("made with", ", ".join(f"{name} {version}" for name, version in about["versions"].items())))
        machines = sorted({_machine(node) for node in about["nodes"].values()})
        rows.append(("on", f"{len(about['nodes'])} x {'; '.join(machines)}"))
    return _table(("", ""), rows)


def _machine(node: Mapping[str, Any]) -> str:
    gpus = f", {len(node['gpus'])} x {node['gpus'][0]}" if node["gpus"] else ", no GPU"
    return f"{node['cpu']}, {node['cores']} cores, {node['memory_bytes'] / 2**30:.0f} GiB{gpus}"


def _kind(of: Mapping[str, Any]) -> str:
    return str(of["$type"]).rpartition(":")[2]


def _spelled(of: Mapping[str, Any]) -> str:
    """The fields that are plain values and are set."""
    plain = {key: value for key, value in of.items() if not key.startswith("$") and not isinstance(value, dict)}
    set_ = {key: value for key, value in plain.items() if value not in (None, "", [], False)}
    return (
        ", ".join(f"{key} {value}" for key, value in set_.items() if not _has_configs(value)) or "as it is by default"
    )


def _has_configs(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(one, dict) for one in value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _table(head: tuple[str, ...], rows: Any) -> list[str]:
    def line(cells: Iterator[str] | tuple[str, ...]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return [line(head), line(tuple("---" for _ in head)), *map(line, rows)]
