"""Token shards on disk, and the batches of equal sequences that are cut from them.

    {folder}/tokens.json     format, dtype, vocab, tokenizer, and the shards with their tokens and sha256
             00000.bin ...   the tokens, little-endian, without a header: mapped into memory, never read whole

A sample is a window of `context` + 1 tokens of one shard, windows one behind the other, so every
token but a shard's last few is predicted once an epoch. A sample's number counts over all shards.

Shape legend: B rows (sequences) of a batch, T tokens of a row.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from rtrain.batch import copied
from rtrain.data import stdlib
from rtrain.data.local_copy import local_copy
from rtrain.data.order import Order, Window
from rtrain.data.protocol import Data
from rtrain.data.reader import Whole
from rtrain.data.samples import Samples
from rtrain.data.split import Ranges, Split, check_train_rows, trained_on
from rtrain.errors import ConfigError, DataError
from rtrain.objectives.ranks import IGNORED
from rtrain.rounding import ceil_div
from rtrain.storage import Folder, path_on_disk

FORMAT = 1
HEAD = "tokens.json"
TOKENIZER = "tokenizer.json"
"""Beside it, of a tokenizer other than bytes."""
BLOCKS_OF_WINDOW, MOST_BLOCKS = 1024, 1 << 15
"""Samples beyond a window are shuffled in blocks of neighbours first: so many in a window, or so many in all."""


@dataclass(frozen=True)
class TokenFacts:
    """What is known of token shards before they are opened."""

    context: int
    """Tokens of a sequence."""


@dataclass
class TokenBatch:
    """One rank's share of a global batch of sequences."""

    made_by: ClassVar[str] = "Tokens"

    tokens: Tensor
    """int64 [B, T]"""
    targets: Tensor
    """int64 [B, T]: the token that follows each; `IGNORED` where a row only pads"""
    row: Tensor
    """int64 [B]: the sample's number in its data set, the identity that resume is proved with; -1 pads"""
    global_rows: int
    """Rows of the global batch, over all data ranks."""

    @property
    def rows(self) -> int:
        """B, padding included."""
        return int(self.tokens.shape[0])

    def loss_units(self, summed: Callable[[float], float]) -> float:
        """As `data.protocol.AnyBatch`: its tokens."""
        return self.global_rows * int(self.tokens.shape[1])

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a piece may take."""
        return {"tokens": self.tokens}

    @property
    def target(self) -> Tensor:
        """What its outputs are held against."""
        return self.targets

    def padded(self, rows: int, longest: object = None) -> "TokenBatch":
        """The batch with rows that count for nothing added at its end, up to `rows`; all are of one length anyway."""
        extra = rows - self.rows
        if extra == 0:
            return self
        return TokenBatch(
            tokens=pad(self.tokens, (0, 0, 0, extra)),
            targets=pad(self.targets, (0, 0, 0, extra), value=IGNORED),
            row=pad(self.row, (0, extra), value=-1),
            global_rows=self.global_rows,
        )

    def to(self, device: torch.device) -> "TokenBatch":
        """A copy on another device; the same object when it is there already."""
        return self if self.tokens.device == device else copied(self, device)


@dataclass
class Sequences:
    """Samples of a window of the data, by number; their tokens are read when a batch is cut."""

    shards: "Shards"
    numbers: NDArray[np.int64]

    def select(self, indices: NDArray[np.integer]) -> "Sequences":
        """The samples at the given positions."""
        return Sequences(self.shards, self.numbers.take(indices))

    @staticmethod
    def batch_of(parts: Sequence["Sequences"], whole: Whole) -> TokenBatch:
        """All samples of all parts."""
        shards = parts[0].shards
        numbers = np.concatenate([p.numbers for p in parts])
        both_BT1 = torch.from_numpy(np.stack([shards.sample(int(n)) for n in numbers]))
        return TokenBatch(
            tokens=both_BT1[:, :-1].contiguous(),
            targets=both_BT1[:, 1:].contiguous(),
            row=torch.from_numpy(numbers),
            global_rows=whole.rows,
        )


class Shards:
    """A folder of token shards, opened and checked.

    Raises:
        DataError: no such folder, a newer format, or a shard that is missing, cut off or too long.
    """

    def __init__(self, folder: Path, context: int):
        self.folder, self.context = folder, context
        head = _head(folder)
        self.vocab: int = head["vocab"]
        self.tokenizer: str = head["tokenizer"]
        dtype = np.dtype(head["dtype"]).newbyteorder("<")
        self._maps: list[NDArray[Any]] = []
        self._firsts: list[int] = []
        self.samples = 0
        for shard in head["shards"]:
            path = folder / shard["file"]
            if path.parent != folder:
                raise DataError(f"{folder / HEAD}: it names a shard outside its folder: {shard['file']!r}")
            size = path.stat().st_size if path.is_file() else None
            if size != shard["tokens"] * dtype.itemsize:
                there = "it is missing" if size is None else f"it has {size} bytes"
                raise DataError(
                    f"{path}: {there}, but {shard['tokens']} tokens take {shard['tokens'] * dtype.itemsize}. "
                    "Copy the shard again, or tokenize the text again"
                )
            self._maps.append(np.memmap(path, dtype=dtype, mode="r") if size else np.empty(0, dtype))
            self._firsts.append(self.samples)
            self.samples += max(0, (shard["tokens"] - 1) // context)
        self.fingerprint = hashlib.sha256(
            json.dumps([context, head["dtype"], [(s["tokens"], s["sha256"]) for s in head["shards"]]]).encode()
        ).hexdigest()[:16]

    def sample(self, number: int) -> NDArray[np.int64]:
        """int64 [context + 1]: the tokens of one sample."""
        shard = bisect_right(self._firsts, number) - 1
        start = (number - self._firsts[shard]) * self.context
        tokens = self._maps[shard][start : start + self.context + 1].astype(np.int64)
        if int(tokens.max()) >= self.vocab:
            raise DataError(
                f"{self.folder}: sample {number} has token {int(tokens.max())}, but the vocabulary has {self.vocab} "
                f"(valid 0..{self.vocab - 1}). Tokenize the text again"
            )
        return tokens


class TokenDataset(Samples[TokenBatch]):
    """Sequences of token shards, split by position."""

    split_field = "data"
    inputs = ("tokens",)

    def __init__(
        self,
        shards: Shards,
        valid: float,
        test: float,
        prefetch: int,
        train_rows: int | None = None,
        window_rows: int = 1 << 22,
    ):
        self.shards, self._window_rows = shards, window_rows
        self.vocab = shards.vocab
        count = shards.samples
        tested, validated = max(1, round(count * test)), max(1, round(count * valid))
        first_test, first_valid = count - tested, count - tested - validated
        if first_valid < 1:
            raise DataError(
                f"{shards.folder}: {count} samples of {shards.context} tokens leave none to train on. "
                "Give more text, or a shorter data.context"
            )
        ranges: Ranges = {
            "train": trained_on((0, first_valid), train_rows),
            "valid": (first_valid, first_test),
            "test": (first_test, count),
        }
        first, stop = ranges["train"]
        # What is shuffled together says what a cursor means, where it is not everything.
        counted = [shards.fingerprint, list(ranges.items()), *([window_rows] if stop - first > window_rows else [])]
        super().__init__(ranges, hashlib.sha256(json.dumps(counted).encode()).hexdigest()[:16], prefetch)

    def _order(self, split: Split, seed: int | None) -> Order:
        first, stop = self.ranges[split]
        size = stop - first
        if size > self._window_rows:
            size = max(1, self._window_rows // BLOCKS_OF_WINDOW, ceil_div(size, MOST_BLOCKS))
        blocks = [(at, min(at + size, stop)) for at in range(first, stop, size)]
        return Order(blocks, seed=seed, window_rows=self._window_rows)

    def _load(self, window: Window) -> Sequences:
        return Sequences(self.shards, np.concatenate([np.arange(*block) for block in window.blocks]))


@dataclass(frozen=True, kw_only=True)
class Tokens(Data):
    """Text as token shards, for language models."""

    gives: ClassVar[Any] = TokenBatch

    source: str
    """A folder that `rtrain data tokenize` wrote, one of any fsspec URI (`s3://...`, which each machine copies into its
    cache, `$RTRAIN_CACHE`), or `stdlib`: the source text of Python's own library, by bytes."""
    context: int = 256
    """Tokens of a sequence."""
    valid: float = 0.05
    """Fraction of the samples that validate: those before the last."""
    test: float = 0.05
    """Fraction of the samples that test: the last."""
    train_rows: int | None = None
    """Samples to train on, the last before validation; none, or more than there are: all."""
    window_rows: int = 1 << 22
    """Samples that all ranks together shuffle at once, 24 bytes each for their numbers; a split that fits is shuffled
    fully, of a larger one a rank holds its own part of a window."""
    prefetch: int = 2
    """Batches that a thread keeps ready, for a GPU in its memory; 0: no thread."""

    def __post_init__(self) -> None:
        if self.context < 1:
            raise ConfigError(f"data.context: must be at least 1, got {self.context}")
        if not (0 < self.valid < 1 and 0 < self.test < 1 and self.valid + self.test < 1):
            raise ConfigError(
                f"data: valid and test must be above 0 and their sum below 1, got {self.valid}, {self.test}"
            )
        check_train_rows(self.train_rows)
        if self.window_rows < 1:
            raise ConfigError(f"data.window_rows: must be at least 1, got {self.window_rows}")
        if self.prefetch < 0:
            raise ConfigError(f"data.prefetch: must be at least 0, got {self.prefetch}")

    @property
    def facts(self) -> TokenFacts:
        """What a model may ask of the data before they are opened."""
        return TokenFacts(self.context)

    def blank(self, rows: int, global_rows: int) -> TokenBatch:
        """See `Data`."""
        tokens, targets = (torch.zeros(rows, self.context, dtype=torch.int64) for _ in range(2))
        return TokenBatch(tokens=tokens, targets=targets, row=torch.arange(rows), global_rows=global_rows)

    def check_source(self) -> None:
        """Look whether a local source is there; nothing is made.

        Raises:
            DataError: it is not.
        """
        here = path_on_disk(self.source)
        if self.source != stdlib.NAME and here and not here.exists():
            raise DataError(f"{self.source}: no such folder of token shards. Check data.source")

    def open(self) -> TokenDataset:
        """The shards, checked.

        Raises:
            DataError: shards that are missing or damaged, or too little text.
        """
        if self.source == stdlib.NAME:
            folder = stdlib.shards(partial(write_shards, vocab=256, tokenizer="bytes"))
        else:
            here = path_on_disk(self.source)
            folder = here or local_copy(self.source, HEAD, partial(_files_named, self.source))
        shards = Shards(folder, self.context)
        return TokenDataset(shards, self.valid, self.test, self.prefetch, self.train_rows, self.window_rows)


def write_shards(
    documents: Iterator[NDArray[np.integer]],
    out: Path | str,
    *,
    vocab: int,
    tokenizer: str,
    shard_tokens: int = 2**26,
) -> None:
    """Write documents, already tokenized, as shards; `tokens.json` comes last, so a folder without it is no data set.

    `out` is a path or URI. A shard ends with the document that reaches `shard_tokens`.
    """
    folder = Folder(str(out))
    dtype = np.dtype("<u2" if vocab <= 2**16 else "<u4")
    shards: list[dict[str, Any]] = []
    held: list[NDArray[np.integer]] = []

    def close() -> None:
        data = np.concatenate(held).astype(dtype).tobytes()
        name = f"{len(shards):05d}.bin"
        folder.write(name, data)
        shards.append({"file": name, "tokens": len(data) // dtype.itemsize, "sha256": hashlib.sha256(data).hexdigest()})
        held.clear()

    size = 0
    for document in documents:
        held.append(document)
        size += len(document)
        if size >= shard_tokens:
            close()
            size = 0
    if held:
        close()
    if not shards:
        raise DataError(f"{out}: there is no document to tokenize")
    head = {"format": FORMAT, "dtype": dtype.name, "vocab": vocab, "tokenizer": tokenizer, "shards": shards}
    folder.write_json(HEAD, head)


def _head(folder: Path) -> dict[str, Any]:
    path = folder / HEAD
    if not path.is_file():
        raise DataError(f"data.source: {folder} holds no {HEAD}. Make shards with `rtrain data tokenize`")
    return _parsed(path.read_bytes(), str(path))


def _files_named(uri: str, content: bytes) -> dict[str, str | None]:
    """What belongs to shards elsewhere, with each one's sha256."""
    head = _parsed(content, f"{uri}/{HEAD}")
    others = {TOKENIZER: None} if head["tokenizer"] == TOKENIZER else {}
    return others | {str(shard["file"]): str(shard["sha256"]) for shard in head["shards"]}


def _parsed(content: bytes, path: str) -> dict[str, Any]:
    try:
        head: dict[str, Any] = json.loads(content)
        if head["format"] > FORMAT:
            raise DataError(f"{path}: format {head['format']} is newer than {FORMAT}. Update rtrain")
        if head["dtype"] not in ("uint16", "uint32"):
            raise DataError(f"{path}: tokens are uint16 or uint32, not {head['dtype']!r}")
        for shard in head["shards"]:
            str(shard["file"]), int(shard["tokens"]), str(shard["sha256"])
        str(head["tokenizer"]), int(head["vocab"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: it cannot be read ({error!r}). Make the shards again") from None
    return head
