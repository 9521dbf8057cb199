"""What was made, and how a recipe reads it."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from rtrain.data.prepare.config import Prepare


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A folder that a run reads: `data/`, `vocabularies/`, `statistics.json` and `prepared.json`."""

    folder: str
    rows: int
    files: int
    fingerprint: str
    """sha256 over the names and the sha256 of data, vocabularies and statistics, in hex: the same for the same rows."""
    schema: str
    """A proposal, as lines of Python."""

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return dict(vars(self))

    def __str__(self) -> str:
        head = f"{self.folder}: {self.rows:,} rows in {self.files} files, fingerprint {self.fingerprint[:16]}"
        return f"{head}\n\n# data=Interactions(source={self.folder + '/data'!r}, schema=...)\n{self.schema}"


def fingerprint(digests: dict[str, str]) -> str:
    """Of files by name."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def schema(config: Prepare, found: dict[str, dict[str, Any]], vocabularies: dict[str, dict[str, Any]]) -> str:
    """Features of columns whose kind leaves no doubt; the label is the writer's to name, if `config.label` does not."""
    lines, left = [], []
    folder = config.out.rstrip("/")
    for name, of in found.items():
        if name in (config.time, config.label):
            continue
        if vocabularies.get(name, {}).get("rows"):
            one = vocabularies[name]
            entity = next((e for e in ("user", "item") if name.lower().startswith(e)), "")
            whose = f" entity={entity!r}," if entity else ""
            lines += [
                "        Id(",
                f"            name={name!r},{whose} numbered=True,",
                "            vocabulary_file=Vocabulary(",
                f"                file={folder + '/' + one['file']!r},",
                f"                size={one['rows']}, kind={one['kind']!r},",
                f"                sha256={one['digest']!r},",
                "            ),",
                "        ),",
            ]
        elif name not in vocabularies and of.get("std"):
            missing = f", missing={of['mean']:.6g}" if of["nulls"] else ""
            lines.append(f"        Dense(name={name!r}, mean={of['mean']:.6g}, std={of['std']:.6g}{missing}),")
        else:
            left.append(name)
    comment = [f"# Left out, as neither numbers that vary nor of a vocabulary: {', '.join(left)}"] if left else []
    if not config.label:
        comment.append("# Take the label's column out of the features, and name it (--label does).")
    return "\n".join(
        [
            *comment,
            "schema = Schema(",
            "    features=(",
            *lines,
            "    ),",
            f"    label={_label(config.label, found[config.label]) if config.label else 'Label(name=...)'},",
            f"    time={config.time!r},",
            ")",
        ]
    )


def _label(name: str, of: dict[str, Any]) -> str:
    binary = {of["min"], of["max"]} <= {0, 1, None} and of["distinct_about"] <= 2
    kind = "" if binary else ", kind='number'"
    return f"Label(name={name!r}{kind}{', optional=True' if of['nulls'] else ''})"
