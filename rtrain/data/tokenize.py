"""Text files -> token shards, by bytes or by a Hugging Face tokenizer that is read or trained on the spot."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO, TextIOWrapper
from typing import Any, cast

import fsspec
import numpy as np
from numpy.typing import NDArray

from rtrain.data.tokens import HEAD, TOKENIZER, write_shards
from rtrain.errors import DataError, one_line
from rtrain.storage import Folder, Patience, path_on_disk
from rtrain.text import library

BYTES = "bytes"
TRAIN = "bpe:"
END = "<|end|>"
"""The token behind each document of a trained tokenizer."""


def tokenize(
    sources: Sequence[str],
    out: str,
    *,
    tokenizer: str = BYTES,
    shard_tokens: int = 2**26,
    say: Callable[[str], None] = lambda _: None,
) -> str:
    """Write the shards of some text files, or of folders of them, each file a document; returns their folder.

    Args:
        sources: files, or folders whose files are taken in the order of their paths; paths, or fsspec URIs.
        out: a folder that does not exist yet, or is empty; a path, or an fsspec URI.
        tokenizer: `bytes` (vocabulary 256, a zero byte behind each document), `bpe:8192` (byte-level BPE of so
            many tokens, trained on these documents), or the path of a tokenizer.json.
        shard_tokens: a shard ends with the document that reaches so many.
        say: told what takes time.

    Raises:
        DataError: no such file, nothing in it, a tokenizer that cannot be read, or a folder that holds something.
    """
    folder = Folder(out)
    if there := folder.names():
        held = f"holds {HEAD} already" if HEAD in there else "is not empty"
        raise DataError(f"{out}: it {held}. Give a new folder")
    files = list(_documents(sources))
    if tokenizer == BYTES:
        documents: Iterator[NDArray[np.integer]] = (np.frombuffer(one.read() + b"\0", np.uint8) for one in files)
        write_shards(documents, out, vocab=256, tokenizer=BYTES, shard_tokens=shard_tokens)
        return out
    kept: Any = _trained(files, tokenizer, say) if tokenizer.startswith(TRAIN) else _read(tokenizer)
    end = kept.token_to_id(END)
    say(f"{len(files)} documents through a vocabulary of {kept.get_vocab_size()}")

    def encoded() -> Iterator[NDArray[np.integer]]:
        for one in files:
            ids = kept.encode(one.text(), add_special_tokens=False).ids
            yield np.array([*ids, *([] if end is None else [end])], np.int64)

    folder.write(TOKENIZER, kept.to_str(pretty=True).encode())
    write_shards(encoded(), out, vocab=kept.get_vocab_size(), tokenizer=TOKENIZER, shard_tokens=shard_tokens)
    return out


@dataclass(frozen=True)
class _Document:
    """A text file, on any storage."""

    read: Callable[[], bytes]

    def text(self) -> str:
        """As UTF-8, each line ended by a line feed."""
        return TextIOWrapper(BytesIO(self.read()), encoding="utf-8", errors="replace").read()


def _documents(sources: Iterable[str]) -> Iterator[_Document]:
    for source in sources:
        path = path_on_disk(source)
        if path is None:
            yield from _elsewhere(source)
        elif path.is_file():
            yield _Document(path.read_bytes)
        elif path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
            if not inside:
                raise DataError(f"{path}: there is no file in it")
            yield from (_Document(file.read_bytes) for file in inside)
        else:
            raise DataError(f"{path}: no such file or folder. Give text files, or folders of them")


def _elsewhere(uri: str) -> Iterator[_Document]:
    """Those of a storage that fsspec reaches."""
    patience = Patience()
    try:
        fs, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise DataError(f"{uri}: this storage cannot be used ({one_line(error)})") from None
    found = patience.run(lambda: fs.find(path), what=f"{uri}: list", remote=True)
    names = sorted((name for name in found if not name.rpartition("/")[2].startswith(".")), key=lambda n: n.split("/"))
    if not names:
        raise DataError(f"{uri}: no such file, or a folder without one. Give text files, or folders of them")

    def read(name: str) -> bytes:
        return cast(bytes, patience.run(lambda: fs.cat_file(name), what=f"{name}: read", remote=True))

    yield from (_Document(partial(read, name)) for name in names)


def _trained(files: Sequence[_Document], tokenizer: str, say: Callable[[str], None]) -> Any:
    size = tokenizer.removeprefix(TRAIN)
    if not size.isdigit() or int(size) < 257:
        raise DataError(f"tokenizer: {tokenizer!r} needs a size of at least 257, as in bpe:8192")
    hugging_face = library()
    made = hugging_face.Tokenizer(hugging_face.models.BPE())
    made.pre_tokenizer = hugging_face.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = hugging_face.decoders.ByteLevel()
    trainer = hugging_face.trainers.BpeTrainer(
        vocab_size=int(size),
        special_tokens=[END],
        initial_alphabet=hugging_face.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    say(f"training a BPE of {size} tokens on {len(files)} documents")
    made.train_from_iterator((one.text() for one in files), trainer, length=len(files))
    return made


def _read(tokenizer: str) -> Any:
    path = path_on_disk(tokenizer)
    if path is None or not path.is_file():
        raise DataError(
            f"tokenizer: there is no file {tokenizer!r}. Give {BYTES}, {TRAIN}8192, or the path of a tokenizer.json"
        )
    try:
        return library().Tokenizer.from_file(str(path))
    except DataError:
        raise
    except Exception as error:  # the library raises a bare Exception
        raise DataError(f"tokenizer: {path} cannot be read ({' '.join(str(error).split())[:200]})") from None
