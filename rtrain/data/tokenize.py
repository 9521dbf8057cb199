"""Text files -> token shards, by bytes or by a Hugging Face tokenizer that is read or trained on the spot."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtrain.data.tokens import HEAD, write_shards
from rtrain.errors import DataError
from rtrain.text import library

BYTES = "bytes"
TRAIN = "bpe:"
END = "<|end|>"
"""The token behind each document of a trained tokenizer."""
TOKENIZER = "tokenizer.json"


def tokenize(
    sources: Sequence[str],
    out: str,
    *,
    tokenizer: str = BYTES,
    shard_tokens: int = 2**26,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write the shards of some text files, or of folders of them, each file a document; returns their folder.

    Args:
        sources: files, or folders whose files are taken in the order of their paths.
        out: a folder that does not exist yet, or is empty.
        tokenizer: `bytes` (vocabulary 256, a zero byte behind each document), `bpe:8192` (byte-level BPE of so
            many tokens, trained on these documents), or the path of a tokenizer.json.
        shard_tokens: a shard ends with the document that reaches so many.
        say: told what takes time.

    Raises:
        DataError: no such file, nothing in it, a tokenizer that cannot be read, or a folder that holds something.
    """
    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        held = f"holds {HEAD} already" if (folder / HEAD).exists() else "is not empty"
        raise DataError(f"{folder}: it {held}. Give a new folder")
    files = list(_files(sources))
    if tokenizer == BYTES:
        documents: Iterator[NDArray[np.integer]] = (np.frombuffer(p.read_bytes() + b"\0", np.uint8) for p in files)
        write_shards(documents, folder, vocab=256, tokenizer=BYTES, shard_tokens=shard_tokens)
        return folder
    kept: Any = _trained(files, tokenizer, say) if tokenizer.startswith(TRAIN) else _read(tokenizer)
    end = kept.token_to_id(END)
    say(f"{len(files)} documents through a vocabulary of {kept.get_vocab_size()}")

    def encoded() -> Iterator[NDArray[np.integer]]:
        for path in files:
            ids = kept.encode(path.read_text(errors="replace"), add_special_tokens=False).ids
            yield np.array([*ids, *([] if end is None else [end])], np.int64)

    write_shards(encoded(), folder, vocab=kept.get_vocab_size(), tokenizer=TOKENIZER, shard_tokens=shard_tokens)
    kept.save(str(folder / TOKENIZER))
    return folder


def _files(sources: Iterable[str]) -> Iterator[Path]:
    for source in sources:
        path = Path(source)
        if path.is_file():
            yield path
        elif path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
            if not inside:
                raise DataError(f"{path}: there is no file in it")
            yield from inside
        else:
            raise DataError(f"{path}: no such file or folder. Give text files, or folders of them")


def _trained(files: Sequence[Path], tokenizer: str, say: Callable[[str], None]) -> Any:
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
    made.train_from_iterator((p.read_text(errors="replace") for p in files), trainer, length=len(files))
    return made


def _read(tokenizer: str) -> Any:
    path = Path(tokenizer)
    if not path.is_file():
        raise DataError(
            f"tokenizer: there is no file {tokenizer!r}. Give {BYTES}, {TRAIN}8192, or the path of a tokenizer.json"
        )
    try:
        return library().Tokenizer.from_file(str(path))
    except DataError:
        raise
    except Exception as error:  # the library raises a bare Exception
        raise DataError(f"tokenizer: {path} cannot be read ({' '.join(str(error).split())[:200]})") from None
