"""Values looked up in vocabularies' files: as a dict does, and only in the version that the config names."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain import Dense, Id, IdList, Interactions, Schema, Vocabulary, vocabulary_of
from rtrain.data import vocabularies
from rtrain.data.encode import encode
from rtrain.errors import ConfigError, DataError

WORDS, NUMBERS = ["b", "", "ä", "a", "long " * 20], [7, -3, 2**62, 0]


@pytest.fixture(autouse=True)
def nothing_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabularies, "_KNOWN", {})


def file_of(tmp_path: Path, values: Any, name: str = "known.parquet", **metadata: str) -> str:
    table = pa.table({"value": values, "count": np.arange(len(values))})
    pq.write_table(table.replace_schema_metadata(metadata or None), tmp_path / name)
    return str(tmp_path / name)


@pytest.mark.parametrize("known", [WORDS, NUMBERS])
@pytest.mark.parametrize("clash", [False, True])
def test_ids_are_places_and_what_is_unknown_or_missing_is_0(
    tmp_path: Path, known: list[Any], clash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if clash:  # all words have one hash, which among few never happens
        monkeypatch.setattr(vocabularies, "hashes", lambda table: np.zeros(table.num_rows, np.uint64))
    one = vocabulary_of(file_of(tmp_path, known))
    one_type = pa.string() if known is WORDS else pa.int64()
    strangers = ["c", "B", "a "] if known is WORDS else [1, 2**63 - 1, -7]
    column = [*known, None, *strangers, *reversed(known), *strangers]
    wanted = [known.index(x) + 1 if x in known else 0 for x in column]
    assert vocabularies.known_of(one).ids(pa.chunked_array([column[:3], column[3:]])).tolist() == wanted
    assert vocabularies.known_of(one).ids(pa.chunked_array([[]], one_type)).tolist() == []
    assert (one.size, one.kind) == (len(known), "words" if known is WORDS else "numbers")
    said = "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in known).encode()
    assert one.sha256 == hashlib.sha256(said).hexdigest()


def test_a_digest_is_of_lines_of_json_whatever_the_words(tmp_path: Path) -> None:
    for values in (
        ['a"b', "c\\d", "e\nf", "g\x00", "\x1f", "h\x7f", "i\u2028", "", "ü"],
        ["plain", "ß \u3042", "'"],
        NUMBERS,
    ):
        said = "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in values).encode()
        assert vocabularies.digest_of(pa.chunked_array([values[:2], values[2:]])) == hashlib.sha256(said).hexdigest()


def test_values_that_were_changed_under_their_digest_are_refused(tmp_path: Path) -> None:
    one = vocabulary_of(file_of(tmp_path, WORDS))
    file = file_of(tmp_path, [*WORDS[:-1], "changed"], **{"rtrain.vocabulary": one.sha256})
    with pytest.raises(DataError) as caught:
        vocabulary_of(file)
    said = "Make it anew by rtrain data prepare, or point vocabulary_file at the file of the version that is wanted"
    assert str(caught.value).endswith(f", {one.sha256[:12]} then). {said}")


def test_a_word_of_a_known_ones_hash_is_not_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = vocabularies.known_of(vocabulary_of(file_of(tmp_path, ["a", "b"])))
    hashes = vocabularies.hashes
    monkeypatch.setattr(vocabularies, "hashes", lambda table: hashes(pa.table({"value": ["a"] * table.num_rows})))
    assert one.ids(pa.chunked_array([["stranger", "a"]])).tolist() == [0, 1]


def test_features_read_files_as_they_read_words_of_a_config(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/v/words.parquet", Path(file_of(tmp_path, WORDS)).read_bytes())
    many = vocabulary_of("memory://v/words.parquet")
    rows = pa.table({"one": ["a", None, "zz", "b"], "more": [["ä", "no"], [], None, ["a", "a"]]})
    given = {"one": tuple(WORDS), "more": tuple(WORDS)}
    inline = Schema(
        features=(Id(name="one", vocabulary=given["one"]), IdList(name="more", vocabulary=given["more"])), group="one"
    )
    filed = Schema(
        features=(Id(name="one", vocabulary_file=many), IdList(name="more", vocabulary_file=many)), group="one"
    )
    a, b = (encode(rows, schema, label=False, where="rows", first_row=0) for schema in (inline, filed))
    assert a.singles.tolist() == b.singles.tolist() == [[4], [0], [0], [1]]
    assert a.lists[0].values.tolist() == b.lists[0].values.tolist() == [3, 0, 4, 4]
    assert filed.tables == inline.tables == {"one": 6, "more": 6}
    assert b.group[[0, 1, 3]].tolist() == [4, 0, 1] and b.group[2] < 0


def test_of_numbered_data_ids_are_read_as_they_are_and_checked(tmp_path: Path) -> None:
    schema = Schema(features=(Id(name="one", vocabulary_file=vocabulary_of(file_of(tmp_path, WORDS)), numbered=True),))
    read = encode(pa.table({"one": [5, None, 0]}), schema, label=False, where="rows", first_row=0)
    assert read.singles.tolist() == [[5], [0], [0]]
    with pytest.raises(DataError, match=r"feature 'one' has id 6 at row 1, but table 'one' has rows=6 \(valid 0..5\)"):
        encode(pa.table({"one": [5, 6]}), schema, label=False, where="rows", first_row=0)


def interactions(tmp_path: Path, vocabulary: Vocabulary, column: list[Any]) -> Interactions:
    rows = {"one": column, "x": [0.5] * len(column), "label": [0.0, 1.0] * (len(column) // 2)}
    pq.write_table(pa.table(rows | {"at": np.arange(len(column))}), tmp_path / "rows.parquet")
    schema = Schema(features=(Id(name="one", vocabulary_file=vocabulary), Dense(name="x")), time="at")
    return Interactions(source=f"{tmp_path}/rows.parquet", schema=schema)


def test_another_version_is_refused_before_training(tmp_path: Path) -> None:
    file = file_of(tmp_path, WORDS)
    data = interactions(tmp_path, vocabulary_of(file), ["a", "b"] * 40)
    assert data.open().rows("train") > 0
    file_of(tmp_path, [*WORDS[1:], "new"])
    vocabularies._KNOWN.clear()
    with pytest.raises(DataError, match=r"known.parquet: a vocabulary of another version: its sha256 is ") as caught:
        data.open()
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="it holds 5 words, but the config says 4 words"):
        vocabularies.known_of(replace(vocabulary_of(file), size=4))
    with pytest.raises(DataError, match=r"column 'one' is int64, but the schema needs string"):
        interactions(tmp_path, vocabulary_of(file), [1, 2] * 40).open()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (["a", "b", "a"], "has a value twice"),
        (["a", None], "has a null"),
        (pa.array([], pa.string()), "the vocabulary is empty"),
        ([0.5], "column 'value' is double"),
        (pa.array([2**64 - 1], pa.uint64()), "does not fit int64"),
    ],
)
def test_a_bad_vocabulary_is_one_line(tmp_path: Path, values: Any, says: str) -> None:
    with pytest.raises(DataError, match=f"known.parquet: .*{says}") as caught:
        vocabulary_of(file_of(tmp_path, values))
    assert "\n" not in str(caught.value)


def test_what_is_no_vocabulary_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a\nb\n")
    pq.write_table(pa.table({"word": ["a"]}), tmp_path / "other.parquet")
    for name, says in (
        ("none", "there is no such vocabulary"),
        ("text", "the vocabulary cannot be read"),
        ("other.parquet", "has a column 'value'; its columns are word"),
    ):
        with pytest.raises(DataError, match=says) as caught:
            vocabulary_of(f"{tmp_path}/{name}")
        assert "\n" not in str(caught.value)


def test_a_feature_has_one_kind_of_ids() -> None:
    one = Vocabulary(file="/v.parquet", size=3, sha256="0")
    for wrong, says in (
        ({"rows": 3, "vocabulary_file": one}, "give either rows"),
        ({"vocabulary": ("a",), "vocabulary_file": one}, "give either rows"),
        ({"rows": 3, "numbered": True}, "numbered needs the vocabulary_file"),
        ({"hashed": "words", "vocabulary_file": one}, "hashed needs rows"),
    ):
        with pytest.raises(ConfigError, match=says):
            Id(name="one", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a list is not numbered beforehand"):
        IdList(name="one", vocabulary_file=one, numbered=True)
    with pytest.raises(ConfigError, match="size must be at least 1"):
        replace(one, size=0)
