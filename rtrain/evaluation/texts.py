"""Generated text and its references from a file of JSON lines, measured."""

import json
from typing import Any

from rtrain.errors import DataError, did_you_mean
from rtrain.metrics.state import Metric
from rtrain.metrics.text import BLEU, ROUGE, TextPairs
from rtrain.storage import Folder

METRICS: tuple[Metric, ...] = (BLEU(), ROUGE(of="1"), ROUGE(of="2"), ROUGE(of="L"))
KEYS = ("prediction", "reference", "references")


def measure_texts(uri: str) -> dict[str, Any]:
    """`pairs`, and each metric's value, of the lines `{"prediction": "...", "reference": "..."}` of a file anywhere.

    In place of `reference` a line may have `references`, a list.

    Raises:
        DataError: no such file, no line in it, or a line that is no such pair.
    """
    pairs = read_pairs(uri)
    return {"pairs": len(pairs.predictions)} | {m.name: m.value(m.partial(pairs)) for m in METRICS}


def read_pairs(uri: str) -> TextPairs:
    """The file's pairs; errors as of `measure_texts`."""
    parent, slash, name = uri.rpartition("/")
    folder = Folder(parent or slash or ".")
    if not folder.exists(name):
        raise DataError(f"{uri}: no such file of JSON lines")
    try:
        lines = folder.read(name).decode().split("\n")  # a text in JSON may hold other ends of lines as they are
    except UnicodeDecodeError as error:
        raise DataError(f"{uri}: it is no text in UTF-8 ({error.reason} at byte {error.start})") from None
    found = [_pair(line, f"{uri}: line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataError(f"{uri}: there is no line in it. Give one JSON object a line, with prediction and reference")
    predictions, references = zip(*found, strict=True)
    return TextPairs(predictions, references)


def _pair(line: str, where: str) -> tuple[str, tuple[str, ...]]:
    try:
        given = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: it is no JSON ({error})") from None
    if not isinstance(given, dict):
        raise DataError(f"{where}: it is no object with prediction and reference, got {line.strip()[:60]!r}")
    for key in given.keys() - set(KEYS):
        raise DataError(f"{where}: {key!r} is not known{did_you_mean(key, KEYS)}. Known are {', '.join(KEYS)}")
    if "prediction" not in given or ("reference" in given) == ("references" in given):
        raise DataError(f"{where}: it needs prediction, and either reference or references, got {', '.join(given)}")
    references = given["references"] if "references" in given else [given["reference"]]
    texts = [given["prediction"], *(references if isinstance(references, list) else [references])]
    if not isinstance(references, list) or not references or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: prediction and reference are text, and references a list of texts, of one at least")
    return given["prediction"], tuple(references)
