"""The exported model: unsharded weights with the config and schema that make sense of them.

    export/model-00000.safetensors ...   weights under the unsharded module's own names
           tokenizer-*.json              of each text that has one, as it was trained with
           program.onnx                  the model for ONNX Runtime, where that is what answers; `export.chosen`
           input.schema.json             JSON Schema of one request row
           export.json                   model config, schema, step, metrics, sha256 of each file; written last

A folder without export.json is not an export. Nothing is pickled.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel
from torch import Tensor

from rtrain import config
from rtrain.batch import Batch, copied, each
from rtrain.checkpoint.format import Stored
from rtrain.data.encode import encode
from rtrain.data.vocabularies import DIGEST, adopt, known_of
from rtrain.errors import CheckpointError, ConfigError, DataError, RtrainError, RtrainWarning, UserError
from rtrain.export.compiled import Compiled, compiled
from rtrain.export.flat import Flat, Requests
from rtrain.export.head import HEAD, head_in
from rtrain.export.huggingface import is_language
from rtrain.export.lookup import Lookup
from rtrain.export.needed import Needed
from rtrain.export.program import PROGRAM, RUNS, Program, missing
from rtrain.export.reach import largest_of
from rtrain.export.request import asked_of, json_schema, row_model
from rtrain.export.weights import fetched, load, loading, put, write_weights
from rtrain.models.ranking import RankingConfig
from rtrain.nn.gathered import weights_of
from rtrain.schema import Id, Schema
from rtrain.storage import Folder
from rtrain.storage.paths import located
from rtrain.text import TokenizerFile
from rtrain.version import VERSION
from rtrain.vocabulary import Vocabulary

FORMAT = 1
WITH_PROGRAM = 2
"""The format of an export that has a program of its dense part, which rtrain before it cannot read."""
LOOKS_UP = 3
"""The format of one whose program looks up by itself, or whose tables are quantised."""
PRUNED = 4
"""The format of one whose dense part lacks weights."""

Prediction = float | list[float]
"""A row's probability, or number; of a schema of several labels one for each, in their order."""


def export(
    model: RankingConfig,
    schema: Schema,
    stored: Stored,
    uri: str,
    *,
    run: str,
    metrics: Mapping[str, float],
    check: Callable[[], None] = lambda: None,
) -> str:
    """Write the model of a checkpoint, whatever layout it was trained at, as an export; returns its URI.

    Tensors pass through memory block by block. `check` is called before each file goes to its
    place, and raises where the folder is another's by now.
    """
    folder = Folder(uri)
    check()
    folder.discard(HEAD)
    folder.discard(PROGRAM)
    files = write_weights(folder, stored, check)
    for vocabulary in vocabularies_of(schema):
        files |= put(folder, _file_of(vocabulary), partial(_copy, vocabulary), check)
    for name, tokenizer in _tokenizers_of(schema).items():
        files |= put(folder, name, tokenizer.write, check)
    check()
    folder.write_json("input.schema.json", json_schema(schema))
    head = {
        "format": FORMAT, "run": run, "step": stored.step, "model": config.to_dict(model),
        "schema": config.to_dict(schema), "metrics": dict(metrics), "rtrain": VERSION, "files": files,
    }  # fmt: skip
    folder.write_json(HEAD, head)
    for name in folder.names():  # of an export before this one, whose tables were kept otherwise
        if name.startswith("model-") and name not in files:
            folder.discard(name)
    return folder.uri


def vocabularies_of(schema: Schema) -> list[Vocabulary]:
    """Those that its features have in files, each once."""
    found = [f.vocabulary_file for f in schema.ids if isinstance(f, Id) and f.vocabulary_file]
    return list({vocabulary.sha256: vocabulary for vocabulary in found}.values())


def _tokenizers_of(schema: Schema) -> dict[str, TokenizerFile]:
    """By the name of each one's file in an export."""
    return {f"tokenizer-{one.sha256[:16]}.json": one for one in schema.tokenizers.values()}


def _file_of(vocabulary: Vocabulary) -> str:
    return f"vocabulary-{vocabulary.sha256[:16]}.parquet"


def _copy(vocabulary: Vocabulary, to: Path) -> None:
    values = pa.table({"value": known_of(vocabulary).values})
    pq.write_table(values.replace_schema_metadata({DIGEST: vocabulary.sha256}), to, write_page_checksum=True)


def export_in(target: str) -> str:
    """The export of a finished run's folder, or the folder itself that is one; a local path with all that is before it.

    Raises:
        UserError: there is none.
    """
    for uri in (target, f"{target.rstrip('/')}/export"):
        if target and (Folder(uri).exists(HEAD) or is_language(uri)):
            return located(uri)
    raise UserError(f"serve: there is no export in {target!r}. Give a finished run's folder, or its export/ folder")


def is_retrieval(uri: str) -> bool:
    """Whether an export is of a model that finds items; `read_head` says what is wrong with what is no export."""
    folder = Folder(uri)
    return folder.exists(HEAD) and "data" in head_in(folder)


def read_head(uri: str, part: str, other: str) -> dict[str, Any]:
    """What an export's head says; `part`: what a head of the kind that is asked for has, `other`: who reads the others.

    Raises:
        CheckpointError: no export there, one of another kind of model, or of a newer format.
    """
    folder = Folder(uri)
    if not folder.exists(HEAD):
        raise CheckpointError(f"export {uri!r}: there is no {HEAD}. Give the export folder of a finished run")
    head = head_in(folder)
    if head["format"] > PRUNED:
        raise CheckpointError(f"export {uri!r}: format {head['format']} is newer than {PRUNED}. Update rtrain")
    if part not in head:
        kind, other = head["model"]["$type"].rpartition(":")[2], "serve" if "language" in head else other
        raise CheckpointError(f"export {uri!r}: {kind} is a model of another kind. Read it with rtrain.{other}")
    return head


def fewer_bits(head: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What a head states of `tables` or a language model's `weights` in fewer bits than trained, of a `dense` part in
    fewer, and of one `pruned`."""
    stated = {part: head.get(part, {}) for part in ("tables", "pruned", "weights")}
    stated["dense"] = head.get("program", {}).get("dense", {})
    return {part: told for part, told in stated.items() if told.get("kept", "trained") != "trained"}


def apart_of(head: Mapping[str, Any]) -> float:
    """By how much answers may be apart from the trainer's, which fewer bits make them.

    Of weights that compute in 16 bits twice: rounded in another order, as by another machine, they are as far from
    float32 as they were here, on whichever side of it.
    """
    sides = {"weights": 2}
    return float(sum(sides.get(part, 1) * told["difference"] for part, told in fewer_bits(head).items()))


def modules_of(head: Mapping[str, Any]) -> tuple[str, ...]:
    """Modules outside rtrain whose classes an export's config names, and that whoever loads it has to have imported.

    Raises:
        ConfigError: a class of a script, which no other process can import.
    """
    named = {str(kind).partition(":")[0]: str(kind) for kind in _kinds(head)}
    if "__main__" in named:
        raise ConfigError(
            f"{named['__main__'].partition(':')[2]} is a class of the script that ran, which no replica can import. "
            "Put it into a module of its own, and train again"
        )
    return tuple(sorted(module for module in named if module.partition(".")[0] != "rtrain"))


def _kinds(tree: Any) -> Iterator[str]:
    if isinstance(tree, Mapping):
        yield from [tree[config.TYPE_KEY]] if config.TYPE_KEY in tree else []
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        for part in tree:
            yield from _kinds(part)


def _stated(uri: str, head: Mapping[str, Any]) -> str:
    """The kind of program that a head states, and that runs here; of exports of before there was a choice, eager.

    Raises:
        CheckpointError: one that is not known, or whose file is not among the export's.
    """
    kind = str(head.get("program", {}).get("kind", "eager"))
    if kind not in ("eager", "onnx", "compiled") or (kind == "onnx" and PROGRAM not in head["files"]):
        raise CheckpointError(f"export {uri!r}: it states a program {kind!r}, which is not there. Export the run again")
    lacking = missing(RUNS)
    if kind == "onnx" and lacking:
        text = f"export {uri!r}: {lacking} is not installed, torch's modules answer. pip install 'rtrain[onnx]'"
        warnings.warn(text, RtrainWarning, stacklevel=4)
        return "eager"
    return kind


def library_of(uri: str, head: Mapping[str, Any], device: str = "cpu") -> tuple[Path | None, str]:
    """An export compiled for this machine; or, second, why it is not: see `rtrain.export.compiled`."""
    try:
        modules = modules_of(head)
    except ConfigError as error:
        return None, str(error)
    return compiled(uri, head, modules, device)


Tables = Literal["device", "host"]
"""Where tables of an export lie: with what computes, or in this machine's memory."""


def prepare(uri: str) -> None:
    """Do what loading an export does once a machine: compile one that says so. What is wrong, who loads it says."""
    with suppress(RtrainError, ValueError, LookupError, TypeError):
        head = read_head(uri, "schema", "Encoders")
        if head.get("program", {}).get("kind") == "compiled":
            library_of(uri, head)


class Predictor:
    """An export, loaded on one process: raw rows in, probabilities (or numbers, as the labels are) out."""

    @loading
    def __init__(
        self,
        uri: str,
        *,
        program: Literal["stated", "eager", "compiled"] = "stated",
        device: str = "cpu",
        tables: Tables = "device",
    ):
        """Load and check an export.

        `program`: answer by what its head states, or by torch's modules, or compiled, whatever it states. `device`:
        where these compute; what is stated was measured on CPU, so that on a GPU it is torch's modules. `tables`: where
        these lie; on the `host` they are mapped, looked up by the processor, and their rows copied to the device.

        Raises:
            CheckpointError: no export there, a newer format, files that were altered, or a program that is not known;
                or `compiled` was asked for, and cannot be had here.
            ConfigError: `compiled` with tables on the host: what is compiled looks up itself.
        """
        if tables == "host" and program == "compiled":
            raise ConfigError("tables: host, but what is compiled looks up itself. Leave one of the two out")
        self.head = read_head(uri, "schema", "Encoders")
        self.schema: Schema = config.from_dict(self.head["schema"])
        model_config: RankingConfig = config.from_dict(self.head["model"])
        self.model = model_config.build(self.schema, seed=0, table_device="meta")
        self.asked = asked_of(self.schema)
        """What requests hold."""
        self._requests, self._flat = Requests(self.asked.arrow(label=False)), Flat(self.asked)
        adopting: dict[str, Callable[[Path], None]]
        adopting = {_file_of(one): partial(adopt, one) for one in vocabularies_of(self.schema)}
        adopting |= {name: one.adopt for name, one in _tokenizers_of(self.schema).items()}
        self.program = cast(Program | Compiled | None, None)
        """What answers instead of the model's modules."""
        self.device = torch.device(device)
        self.on_host = tables == "host"
        """Whether tables stay where the processor looks them up."""
        on_cpu = self.device.type == "cpu" and not self.on_host
        answers: str = program if program != "stated" else _stated(uri, self.head) if on_cpu else "eager"
        library = self._library(uri, must=program == "compiled") if answers == "compiled" else None
        adopting[PROGRAM] = self._run_by if answers == "onnx" else lambda local: None
        self.looks_up = library is not None or (answers == "onnx" and self.head["format"] >= LOOKS_UP)
        """Whether the program has the lookups, too; else the model's tables look up."""
        self.quantised = "tables" in self.head
        """Whether tables lie there in fewer bits than the model's modules can hold."""
        blueprint = model_config.blueprint(self.schema)
        files, names = fetched(uri, self.head["files"]), tuple(map(weights_of, blueprint.tables))
        apart = self.looks_up or self.quantised or self.on_host
        weights = load(self.model, files, lambda name, local: adopting[name](local), tables=names, apart=apart)
        if self.device.type != "cpu":
            weights = self._moved(weights, apart)
        self.lookup = Lookup(self.model, blueprint, self.schema, weights)
        """What hands such a program its tables and ids."""
        if library is not None:
            self.program = self.compiled_as(library)
        if self.program is not None and self.looks_up:
            self.program.keep(self.lookup.tables)

    @cached_property
    def rows(self) -> type[BaseModel]:
        """Validates a row of a request; of numbers that are larger than this model makes any of, it says so."""
        return row_model(self.schema, largest_of(self.schema, self.computed))

    def _moved(self, weights: dict[str, Tensor], apart: bool) -> dict[str, Tensor]:
        """What computes goes to the device, and the tables once: where the model has its own, those are they."""
        if apart:
            self.model.dense().to(self.device)
            return weights if self.on_host else {name: table.to(self.device) for name, table in weights.items()}
        own = self.model.to(self.device).state_dict()
        return {name: own[name] for name in weights}

    def compiled_as(self, library: Path) -> Compiled:
        """A library of it, with the tables as they lie here."""
        program = Compiled(library, self.lookup.whole.takes)
        program.keep(self.lookup.tables)
        return program

    def _run_by(self, local: Path) -> None:
        self.program = Program(local)

    def _library(self, uri: str, *, must: bool) -> Path | None:
        library, why = library_of(uri, self.head, str(self.device))
        if why and must:
            raise CheckpointError(f"export {uri!r}: it cannot be compiled here: {why}")
        if why:
            text = f"export {uri!r}: it cannot be compiled here, torch's modules answer: {why}"
            warnings.warn(text, RtrainWarning, stacklevel=4)
        return library

    @torch.inference_mode()
    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        """Probability of label 1 (of each label), or number, for each row; keys missing, ids out of range are refused.

        Raises:
            DataError: a row that does not fit the schema, by feature and value.
        """
        return self.answers(self.computed(self.asks(rows))) if rows else []

    def asks(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """What the model is given of raw rows, of which there is one.

        Raises:
            DataError: as `predict`.
        """
        try:
            table = self._requests.table(list(map(self._flat, rows)))
        except ValueError as error:
            raise DataError(f"request: {' '.join(str(error).split())}") from error
        return self._batch(table, self.asked, where="request", first_row=0)

    def answers(self, outputs: Tensor) -> list[Prediction]:
        """Probabilities, or numbers, of what the model gives."""
        answers: list[Prediction] = self.model.objective.link(outputs).tolist()
        return answers

    @torch.inference_mode()
    def of_rows(self, wanted: Needed, rows: Mapping[str, Tensor]) -> Tensor:
        """As `computed`, of a batch whose tables lie elsewhere, and of the rows that it needed."""
        return self.lookup.of_rows(wanted, rows, self.device).cpu()

    @torch.inference_mode()
    def outputs(self, table: pa.Table, *, where: str, first_row: int) -> Tensor:
        """Logits, or numbers, float32 [rows] or [rows, labels], of rows as the data hold them.

        `where` and `first_row`: as messages name the rows.

        Raises:
            DataError: as `predict`; columns that the schema does not name are left out.
        """
        return self.computed(self.batch(table, where=where, first_row=first_row))

    def batch(self, table: pa.Table, *, where: str, first_row: int) -> Batch:
        """What the model is given of rows as the data hold them; else as `outputs`."""
        return self._batch(table, self.schema, where, first_row)

    def _batch(self, table: pa.Table, schema: Schema, where: str, first_row: int) -> Batch:
        fits = self._requests.wanted if schema is self.asked else None  # a request's table is made by it
        columns = encode(table, schema, label=False, where=where, first_row=first_row, fits=fits)
        return columns.batch(global_rows=columns.rows)

    def computed(self, batch: Batch) -> Tensor:
        """Logits, or numbers, float32 [rows] or [rows, labels], by whatever answers of this export."""
        if self.on_host:
            return self.lookup.there(batch, self.device).cpu()
        return self.computed_by(self.program, batch)

    def computed_by(self, program: Program | Compiled | None, batch: Batch) -> Tensor:
        """As `computed`, by another program of this export; none: by torch's modules."""
        there = batch if self.device.type == "cpu" else copied(each(batch, Tensor.pin_memory), self.device)
        if program is not None:
            looks_up = self.looks_up or isinstance(program, Compiled)
            return program(self.lookup.given(there) if looks_up else self.model.given(there)).cpu()
        outputs: Tensor = self.lookup(there) if self.quantised else self.model(there)
        return outputs.cpu()

    def given(self, batch: Batch) -> dict[str, Tensor]:
        """What the program may take of a batch."""
        return self.lookup.given(batch) if self.looks_up else self.model.given(batch)
