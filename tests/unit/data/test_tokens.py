"""Token shards: what is written is read, every token is predicted once an epoch, damage is refused."""

import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtrain.data.tokenize import tokenize
from rtrain.data.tokens import IGNORED, TokenBatch, Tokens, write_shards
from rtrain.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of 41, 40 and 19 tokens that count up, so that a token tells where it is from."""
    documents = np.split(np.arange(100), [41, 81])
    write_shards(iter(documents), tmp_path / "shards", vocab=100, tokenizer="none", shard_tokens=30)
    return tmp_path / "shards"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """220 samples of one token."""
    made = tmp_path_factory.mktemp("many") / "shards"
    write_shards(iter([np.arange(221)]), made, vocab=221, tokenizer="none")
    return made


def tokens(folder: Path, context: int = 4) -> Tokens:
    return Tokens(source=str(folder), context=context, valid=0.1, test=0.1, prefetch=0)


def test_each_position_but_a_shards_tail_is_predicted_once(folder: Path) -> None:
    data = tokens(folder).open()
    assert {s: data.rows(s) for s in ("train", "valid", "test")} == {"train": 19, "valid": 2, "test": 2}
    seen = [batch for s in ("train", "valid", "test") for batch in data.scan(s, global_batch=5, rank=0, world_size=1)]
    targets = np.concatenate([b.targets.flatten().numpy() for b in seen])
    inputs = np.concatenate([b.tokens.flatten().numpy() for b in seen])
    assert (targets == inputs + 1).all(), "a target is the token that follows, and no sample crosses a shard"
    assert targets.tolist() == [*range(1, 41), *range(42, 78), *range(82, 98)]
    assert np.concatenate([b.row.numpy() for b in seen]).tolist() == list(range(23))


def test_an_epoch_is_a_permutation_dealt_over_the_ranks(folder: Path) -> None:
    data = tokens(folder).open()
    alone = data.reader(global_batch=7, seed=1, rank=0, world_size=1)
    together = [data.reader(global_batch=7, seed=1, rank=r, world_size=3) for r in range(3)]
    rows = []
    for (whole, cursor), *shares in zip(alone, *together, strict=False):
        assert whole.row.tolist() == [n for share, _ in shares for n in share.row.tolist()]
        assert whole.loss_units(float) == whole.rows * 4
        rows += whole.row.tolist()
        if cursor.epoch == 1:
            break
    assert sorted(rows) == list(data.numbers("train")) and rows != sorted(rows)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(window=st.integers(1, 40), batch=st.integers(16, 30), start=st.integers(0, 12), seed=st.integers(0, 9))
def test_an_epoch_beyond_the_window_is_the_same_at_any_world(
    many: Path, window: int, batch: int, start: int, seed: int
) -> None:
    """Every sample once, the same global batches at any number of ranks, and from any batch on as from the first."""
    data = replace(tokens(many, context=1), window_rows=window).open()
    worlds: dict[int, list[list[int]]] = {}
    for size in (1, 2, 3, 4, 8):
        readers = [iter(data.reader(global_batch=batch, seed=seed, rank=r, world_size=size)) for r in range(size)]
        worlds[size], epoch, cursors = [], 0, []
        while epoch == 0:
            shares = [next(reader) for reader in readers]
            epoch = shares[0][1].epoch
            cursors.append(shares[0][1])
            worlds[size].append([n for share, _ in shares for n in share.row.tolist()])
    assert all(batches == worlds[1] for batches in worlds.values())
    seen = [n for rows in worlds[1] for n in rows]
    assert sorted(seen) == list(data.numbers("train")) and seen != sorted(seen)
    if start < len(cursors) - 1:
        rest = data.reader(global_batch=batch, seed=seed, rank=0, world_size=1, cursor=cursors[start])
        assert next(iter(rest))[0].row.tolist() == worlds[1][start + 1]
    scanned = [b.row.tolist() for b in data.scan("train", global_batch=batch, rank=0, world_size=1)]
    assert [n for rows in scanned for n in rows] == list(data.numbers("train"))


def test_another_window_is_another_order_where_it_holds_not_all(many: Path) -> None:
    whole, larger, least = (replace(tokens(many, context=1), window_rows=n).open() for n in (1 << 22, 999, 40))
    assert whole.fingerprint == larger.fingerprint != least.fingerprint
    order = replace(tokens(many, context=1), window_rows=40).open()._order("train", 0)
    assert order.strata > 8
    with pytest.raises(ConfigError, match="data.window_rows: must be at least 1, got 0"):
        replace(tokens(many), window_rows=0)


def test_a_thousand_million_samples_are_opened_in_little_memory(tmp_path: Path) -> None:
    """Their numbers would take 8 GB; the shard is a file of holes."""
    count = 10**9 + 1
    with (tmp_path / "00000.bin").open("wb") as shard:
        shard.truncate(2 * count)
    head = {"format": 1, "dtype": "uint16", "vocab": 9, "tokenizer": "none"}
    head |= {"shards": [{"file": "00000.bin", "tokens": count, "sha256": "0"}]}
    (tmp_path / "tokens.json").write_text(json.dumps(head))
    script = f"""
        import resource
        from rtrain.data.tokens import Tokens
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        data = Tokens(source={str(tmp_path)!r}, context=1, prefetch=0).open()
        read = [next(iter(data.reader(global_batch=64, seed=0, rank=r, world_size=8)))[0].rows for r in (0, 7)]
        next(data.scan("valid", global_batch=64, rank=0, world_size=1))
        print(sum(read), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    words = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=True)
    rows, grown_mb = map(int, done.stdout.split())
    # Of 4 Mi numbers and what is needed to shuffle them, 24 bytes each, and the table of blocks.
    assert rows == 16 and grown_mb < 250


def test_every_token_is_read_without_a_copy_of_a_shard_in_memory(tmp_path: Path) -> None:
    """Two shards of 64 MiB: what is the process's own, and not of the mapped files, grows by a few batches."""
    count = 2**25
    for name in ("00000.bin", "00001.bin"):
        np.full(count, 7, "<u2").tofile(tmp_path / name)
    head = {"format": 1, "dtype": "uint16", "vocab": 9, "tokenizer": "none"}
    head |= {"shards": [{"file": f"0000{n}.bin", "tokens": count, "sha256": "0"} for n in (0, 1)]}
    (tmp_path / "tokens.json").write_text(json.dumps(head))
    script = f"""
        from rtrain.data.tokens import Tokens

        def own():
            (line,) = [x for x in open("/proc/self/status") if x.startswith("RssAnon")]
            return int(line.split()[1]) * 1024

        begin, most, read = own(), 0, 0
        data = Tokens(source={str(tmp_path)!r}, context=1024).open()
        for batch, cursor in data.reader(global_batch=32, seed=0, rank=0, world_size=1):
            read, most = read + int((batch.tokens == 7).sum()), max(most, own())
            if cursor.epoch:
                break
        print(read // 1024 / data.rows("train"), most - begin)
    """
    words = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=True)
    share, grown = map(float, done.stdout.split())
    assert share == 1 and grown < count, grown  # half of one shard


def test_padding_counts_for_nothing(folder: Path) -> None:
    batch: TokenBatch = next(iter(tokens(folder).open().scan("valid", global_batch=2, rank=0, world_size=1)))
    padded = batch.padded(5)
    assert padded.rows == 5 and padded.loss_units(float) == batch.loss_units(float) == 8
    assert (padded.targets[2:] == IGNORED).all() and padded.row.tolist()[2:] == [-1, -1, -1]
    assert (padded.targets[:2] == batch.targets).all()


def test_damage_is_refused(folder: Path) -> None:
    shard = folder / "00001.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-2])
    with pytest.raises(DataError, match=r"00001.bin: it has 78 bytes, but 40 tokens take 80. Copy the shard again"):
        tokens(folder).open()
    shard.unlink()
    with pytest.raises(DataError, match=r"00001.bin: it is missing"):
        tokens(folder).open()
    shard.write_bytes(np.full(40, 999, "<u2").tobytes())
    data = tokens(folder).open()
    with pytest.raises(DataError, match=r"has token 999, but the vocabulary has 100 \(valid 0..99\)"):
        list(data.scan("train", global_batch=19, rank=0, world_size=1))
    head = json.loads((folder / "tokens.json").read_text())
    head["shards"][0]["file"] = "../00000.bin"
    (folder / "tokens.json").write_text(json.dumps(head))
    with pytest.raises(DataError, match="it names a shard outside its folder"):
        tokens(folder).open()
    (folder / "tokens.json").write_text(json.dumps(head | {"format": 9}))
    with pytest.raises(DataError, match="format 9 is newer than 1. Update rtrain"):
        tokens(folder).open()
    (folder / "tokens.json").write_text("{}")
    with pytest.raises(DataError, match="it cannot be read"):
        tokens(folder).open()


def test_too_little_text_and_no_text(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 samples of 30 tokens leave none to train on"):
        tokens(folder, context=30).open()
    with pytest.raises(DataError, match=r"nowhere holds no tokens.json. Make shards with `rtrain data tokenize`"):
        tokens(tmp_path / "nowhere").open()
    with pytest.raises(ConfigError, match=r"data.context: must be at least 1, got 0"):
        tokens(folder, context=0)


def test_training_on_the_last_samples_leaves_the_other_splits_as_they_are(folder: Path) -> None:
    cut = replace(tokens(folder), train_rows=5).open()
    assert cut.ranges == {"train": (14, 19), "valid": (19, 21), "test": (21, 23)}
    assert cut.fingerprint != tokens(folder).open().fingerprint
    assert replace(tokens(folder), train_rows=20).open().ranges == tokens(folder).open().ranges
    with pytest.raises(ConfigError, match=r"data.train_rows: must be at least 1, or none, got 0"):
        replace(tokens(folder), train_rows=0)


def test_bytes_of_files_are_their_tokens(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    (text / "b.txt").write_text("zwei")
    (text / "a.txt").write_text("eins")
    made = Path(tokenize([str(text)], str(tmp_path / "out")))
    assert (made / "00000.bin").read_bytes() == np.frombuffer(b"eins\0zwei\0", np.uint8).astype("<u2").tobytes()
    with pytest.raises(DataError, match=r"it holds tokens.json already. Give a new folder"):
        tokenize([str(text)], str(made))
    with pytest.raises(DataError, match="absent: no such file or folder"):
        tokenize([str(tmp_path / "absent")], str(tmp_path / "other"))


def test_a_bpe_trained_on_the_spot_gives_the_text_back(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    source = Path(__file__).parent
    made = Path(tokenize([str(source)], str(tmp_path / "out"), tokenizer="bpe:400"))
    kept = tokenizers.Tokenizer.from_file(str(made / "tokenizer.json"))
    ids = np.fromfile(made / "00000.bin", "<u2")
    assert ids.max() < kept.get_vocab_size() == json.loads((made / "tokens.json").read_text())["vocab"] == 400
    files = sorted(p for p in source.rglob("*") if p.is_file() and not p.name.startswith("."))
    text = "".join(p.read_text(errors="replace") for p in files)
    assert kept.decode(ids.tolist(), skip_special_tokens=True) == text
    assert len(ids) < 0.6 * len(text.encode())
    again = Path(tokenize([str(source)], str(tmp_path / "again"), tokenizer=str(made / "tokenizer.json")))
    assert (again / "00000.bin").read_bytes() == (made / "00000.bin").read_bytes()


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ("bpe:12", "'bpe:12' needs a size of at least 257"),
        ("absent.json", "there is no file 'absent.json'"),
        (__file__, "cannot be read"),
    ],
)
def test_a_tokenizer_that_cannot_be(tokenizer: str, message: str, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    with pytest.raises(DataError, match="^tokenizer: ") as caught:
        tokenize([__file__], str(tmp_path / "out"), tokenizer=tokenizer)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists(), "nothing half-written"
