"""A language model's export: Hugging Face's files, and beside them the head that says what they are.

{folder}/config.json, model-*.safetensors, tokenizer.json ...   as Hugging Face has them
         export.json                                             run, step, context, metrics, sha256 of each; last

The head is rtrain's own, for gate, registry and card; what reads Hugging Face's folders does not look at it. A folder
from elsewhere has none, and is served without.
"""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from rtrain import config
from rtrain.checkpoint.format import Stored
from rtrain.data.tokens import TOKENIZER
from rtrain.errors import ConfigError
from rtrain.export.artifact import FORMAT
from rtrain.export.head import HEAD
from rtrain.export.huggingface import export_decoder
from rtrain.export.tokenizer import write_tokenizer
from rtrain.export.weights import fetched
from rtrain.run import Run
from rtrain.storage import Folder
from rtrain.version import VERSION


def export_language(
    run: Run, stored: Stored, uri: str, metrics: Mapping[str, float], check: Callable[[], None], dataset: Any
) -> str:
    """See `rtrain.export.formats.Export`."""
    folder = Folder(uri)
    check()
    folder.discard(HEAD)
    files = write_tokenizer(dataset.shards, uri, check)
    context: int = run.data.context  # type: ignore[attr-defined]
    files |= export_decoder(run.model, stored, uri, context=context, check=check)  # type: ignore[arg-type]
    check()
    folder.write_json(
        HEAD,
        {
            "format": FORMAT,
            "run": run.name,
            "step": stored.step,
            "model": config.to_dict(run.model),
            "language": {"context": context, "vocab": dataset.vocab, "tokenizer": files[TOKENIZER]},
            "metrics": dict(metrics),
            "rtrain": VERSION,
            "files": files,
        },
    )
    for name in folder.names():  # of an export before this one, whose weights were kept otherwise
        if name.startswith("model-") and name not in files:
            folder.discard(name)
    return folder.uri


def verify(uri: str) -> None:
    """Hold the files of a language export against its head, where it has one.

    Raises:
        CheckpointError: a file that is missing, was altered, or lies outside the folder.
    """
    folder = Folder(uri)
    if folder.exists(HEAD):
        for _ in fetched(uri, folder.read_json(HEAD)["files"]):
            pass


def refuse_loaded(field: str) -> None:
    """Refuse now what a field of `handoff`, for which the export is loaded, would miss when the training is over.

    Raises:
        ConfigError: transformers is not installed.
    """
    if find_spec("transformers") is None:
        raise ConfigError(
            f"handoff.{field}: the package `transformers` is not installed. Run pip install rtrain[language]"
        )
