"""The text of a first recipe."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from rtrain.starter.guess import Column
from rtrain.starter.prepare import Prepared

WIDTH = 110
INLINE_WORDS = 8
"""Vocabularies of at most so many words stand where they are used."""

TEMPLATE = '''\
"""A first recipe, written by `rtrain init`: each comment says what was guessed, and from what.

python {file} train --debug        # 20 steps: does it run?
python {file} train                # the whole training, test, export and served answers
python {file} plan                 # which rank holds which table
python {file} --help               # every field, with its meaning
"""

from dataclasses import replace
from pathlib import Path

from rtrain import (
{imports}
)

# {data_comment}
SOURCE = {source}
{words}
SCHEMA = Schema(
    # What the model reads, and what a request to the endpoint holds. Take out what is known only after the label.
    features=(
{features}
    ),
{left_out}\
    # What is predicted: 1 or 0.
    label=Label(name={label}),
{group}\
{time}\
)


def run() -> Run:
    return Run(
        name={name},
        # {model_comment}
        model={model},
        # {split_comment}
{encoded}\
        data=Interactions(source=SOURCE, schema=SCHEMA, split={split}(valid=0.1, test=0.1)),
        optim=AdamW(lr=2e-3),  # of the dense layers
        sparse_optim=RowWiseAdagrad(lr=2e-2),  # of the embedding tables
        global_batch={batch},  # rows of a step; an epoch is about {steps} steps
        duration=Duration(epochs={epochs}),  # more where an epoch is short: about a thousand steps in all
        # The validation rows are scored at the end of each epoch; the best AUC is kept.
        evaluation=Evaluation(monitor="auc"),
        # Two worker processes. On GPUs: Cluster(workers=<GPUs>, gpus_per_worker=1).
        cluster=Cluster(workers=2),
        # Serve the export once and compare its answers with the trainer's.
        handoff=Handoff(serve_check=True),
        metrics={metrics},
        log_every_steps={log},
    )


def debug() -> Run:
    """The same path in seconds: what --debug trains."""
    return replace(run(), name={debug_name}, duration=Duration(steps=20), log_every_steps=5, handoff=Handoff())


if __name__ == "__main__":
    main(run, debug)
'''


def recipe_text(recipe: Path, data: str, prepared: Prepared, columns: Sequence[Column]) -> str:
    """A recipe for prepared data, as a Python file."""
    used = [c for c in columns if c.kind]
    dense = any(c.kind == "Dense" for c in used)
    group = next((c.name for c in used if c.kind == "Id" and c.entity == "user"), "")
    model = "DLRM" if dense else "DCNv2"
    metrics = ["AUC", "LogLoss", *(["NDCG"] if group else [])]
    split = "ByTime" if prepared.time else "Random"
    names = {"Label", "AdamW", split, "Cluster", "Duration", "Evaluation", "Handoff", "Interactions"}
    names |= {"RowWiseAdagrad", "Run", "Schema", "main", model, *metrics} | {c.kind for c in used}
    constants = _constants(used)
    batch = _batch(prepared.data.rows * 0.8)
    steps = max(1, round(prepared.data.rows * 0.8 / batch))
    run = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(data).stem).strip("._-")[:80] or "first"
    return TEMPLATE.format(
        file=recipe.name,
        imports="\n".join(f"    {name}," for name in sorted(names, key=lambda n: (n != n.upper(), n == "main", n))),
        data_comment=f"The data: {_comment('; '.join(prepared.done))}."
        if prepared.done
        else "The data, as it was given.",
        source=_source(recipe, data),
        words="".join(
            f"\n# The words of {_quoted(c.name)}: the one at index i is row i + 1 of its table.\n"
            f"{constants[c.name]} = (\n{_packed(c.words)}\n)\n"
            for c in used
            if c.name in constants
        ),
        features="\n".join(_feature(c, constants.get(c.name, "")) for c in used),
        left_out="".join(f"    # Left out: {_quoted(c.name)}: {_comment(c.why)}.\n" for c in columns if not c.kind),
        label=_quoted(prepared.label),
        group=f"    # Whose rows are ranked together, for NDCG.\n    group={_quoted(group)},\n" if group else "",
        time=f"    # What orders the rows: the newest test, so that nothing of the future is trained on.\n"
        f"    time={_quoted(prepared.time)},\n"
        if prepared.time
        else "",
        split=split,
        split_comment="The oldest 80 % of the rows train; the next 10 % pick the best checkpoint; the newest 10 % test."
        if prepared.time
        else "No column tells the time: chance has 80 % of the rows train, 10 % pick the best checkpoint, 10 % test.",
        encoded="        # Where numbers act in steps or waves: add .encoded(bins=16), bins of the training rows.\n"
        if dense
        else "",
        name=_quoted(run),
        debug_name=_quoted(f"{run}-debug"),
        model_comment="Others that read the same schema: DeepFM, DCNv2, and DIN where there is a IdSequence.",
        model="DLRM(dim=16, bottom=(64,), top=(64, 32), dropout=0.1)" if dense else "DCNv2(dim=16, deep=(64, 32))",
        metrics=f"({', '.join(f'{m}(k=10)' if m == 'NDCG' else f'{m}()' for m in metrics)})",
        batch=batch,
        steps=steps,
        epochs=min(10, max(3, round(1000 / steps))),
        log=10 if batch > 64 else 5,
    )


def _feature(column: Column, constant: str) -> str:
    options = dict(column.options)
    if column.entity != "context":
        options = {"entity": _quoted(column.entity)} | options
    if column.words:
        options["vocabulary"] = constant or f"({', '.join(map(_quoted, column.words))},)"
    arguments = "".join(f", {key}={value}" for key, value in options.items())
    return f"        # {_comment(column.why)}\n        {column.kind}(name={_quoted(column.name)}{arguments}),"


def _batch(rows: float) -> int:
    """A power of two, so that an epoch has about a hundred steps."""
    batch = 16
    while batch < 4096 and batch * 2 <= rows / 100:
        batch *= 2
    return batch


def _source(recipe: Path, data: str) -> str:
    """A path that stays right when recipe and data move together."""
    if "://" in data:
        return _quoted(data)
    folder, file = recipe.absolute().parent, Path(data).absolute()
    if file.is_relative_to(folder):
        return f"str(Path(__file__).resolve().parent / {_quoted(str(file.relative_to(folder)))})"
    return _quoted(str(file))


def _constants(columns: Sequence[Column]) -> dict[str, str]:
    """A Python name for each long vocabulary, of its own also where columns' names differ in signs alone."""
    named = dict[str, str]()
    for column in columns:
        if len(column.words) > INLINE_WORDS:
            plain = re.sub(r"[^A-Za-z0-9]+", "_", column.name).upper().strip("_") + "_WORDS"
            named[column.name] = plain if plain not in named.values() else f"{plain}_{len(named)}"
    return named


def _packed(words: Sequence[str]) -> str:
    """As many words a line as fit; a word stays whole whatever it holds."""
    lines, line = list[str](), ""
    for word in map(_quoted, words):
        if line and len(line) + len(word) + 2 > WIDTH:
            lines.append(line)
            line = ""
        line += f" {word}," if line else f"    {word},"
    return "\n".join([*lines, line])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _comment(text: str) -> str:
    """On one line, whatever a column's name holds."""
    return " ".join(text.split())
