"""Token shards that lie elsewhere: on a disk they are read where they are, from other storages copied once."""

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import numpy as np
import pytest

from rtrain.data.tokenize import tokenize
from rtrain.data.tokens import Tokens, write_shards
from rtrain.errors import DataError
from rtrain.storage import Folder

DOCUMENTS = np.split(np.arange(100), [41, 81])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """Three shards on a storage that is no disk."""
    uri = f"memory://{uuid4().hex}"
    write_shards(iter(DOCUMENTS), uri, vocab=100, tokenizer="none", shard_tokens=30)
    yield uri
    Folder(uri).remove()


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was asked for."""
    seen: Counter[str] = Counter()
    kind = type(fsspec.filesystem("memory"))
    get = kind.get_file

    def counted(self: object, path: str, *args: object, **options: object) -> object:
        seen[path.rpartition("/")[2]] += 1
        return get(self, path, *args, **options)

    monkeypatch.setattr(kind, "get_file", counted)
    return seen


def opened(source: str) -> Tokens:
    return Tokens(source=source, context=4, valid=0.1, test=0.1, prefetch=0)


def files_of(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and not path.name.endswith(".lock"))


def test_a_uri_of_a_disk_is_read_where_it_is(tmp_path: Path, cache: Path) -> None:
    here = tmp_path / "shards"
    write_shards(iter(DOCUMENTS), here, vocab=100, tokenizer="none", shard_tokens=30)
    data = opened(f"file://{here}")
    data.check_source()
    assert data.open().fingerprint == opened(str(here)).open().fingerprint
    assert not cache.exists(), "nothing is copied"
    with pytest.raises(DataError, match="no such folder of token shards"):
        opened(f"file://{here}/absent").check_source()


def test_a_damaged_file_of_the_user_stays(tmp_path: Path) -> None:
    here = tmp_path / "shards"
    write_shards(iter(DOCUMENTS), here, vocab=100, tokenizer="none", shard_tokens=30)
    damaged = here / "00001.bin"
    damaged.write_bytes(b"cut off")
    with pytest.raises(DataError, match="00001.bin"):
        opened(f"file://{here}").open()
    assert damaged.read_bytes() == b"cut off"


def test_each_file_is_copied_once(elsewhere: str, cache: Path, fetched: Counter[str]) -> None:
    for _ in range(2):
        assert opened(elsewhere).open().rows("train") == 19
    assert files_of(cache) == ["00000.bin", "00001.bin", "00002.bin", "tokens.json"]
    assert fetched == dict.fromkeys(files_of(cache), 1)


def test_a_copy_that_was_interrupted_is_gone_on_from(
    elsewhere: str, cache: Path, fetched: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = Folder.fetch, itertools.count()

    def killed_in_the_third(self: Folder, name: str, into: Path) -> Path:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return whole(self, name, into)

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "fetch", killed_in_the_third)
        with pytest.raises(KeyboardInterrupt):
            opened(elsewhere).open()
    assert files_of(cache) == ["00000.bin", "00001.bin"]
    assert opened(elsewhere).open().rows("train") == 19
    assert fetched == dict.fromkeys(files_of(cache), 1)
    assert set(fetched) == {"00000.bin", "00001.bin", "00002.bin", "tokens.json"}


def test_a_file_that_was_damaged_on_the_way_is_fetched_again(elsewhere: str, cache: Path) -> None:
    name = "00001.bin"
    good = Folder(elsewhere).read(name)
    Folder(elsewhere).write(name, bytes(len(good)))
    with pytest.raises(DataError, match=rf"{name}: its sha256 is not what was written down"):
        opened(elsewhere).open()
    assert name not in files_of(cache)
    Folder(elsewhere).write(name, good)
    assert opened(elsewhere).open().rows("train") == 19


def test_texts_and_a_tokenizer_are_read_by_a_uri_of_a_disk(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    source = f"file://{Path(__file__).parent}"
    made = Path(tokenize([source], str(tmp_path / "out"), tokenizer="bpe:400"))
    plain = Path(tokenize([str(Path(__file__).parent)], str(tmp_path / "plain"), tokenizer="bpe:400"))
    again = Path(tokenize([source], str(tmp_path / "again"), tokenizer=f"file://{made}/tokenizer.json"))
    assert (made / "00000.bin").read_bytes() == (plain / "00000.bin").read_bytes() == (again / "00000.bin").read_bytes()
