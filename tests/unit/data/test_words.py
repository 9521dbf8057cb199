"""Texts as the ids of their words: in their order, the same in every process, and refused in one line where bad."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain.config import from_dict, to_dict
from rtrain.data.negatives import Negatives
from rtrain.data.retrieval import Pairs
from rtrain.data.side import SideFeatures
from rtrain.data.words import Words, words_of
from rtrain.errors import ConfigError, DataError
from rtrain.text import Text, TokenizerFile
from tests.unit.data.test_texts import trained

TITLE = Words(name="title", rows=100_000, longest=4)
# Of "toy", "story", "öl" and "2": what a checkpoint's table was trained with.
KNOWN = {"toy": 36809, "story": 16796, "öl": 65551, "2": 1414}


def ids(texts: Any, feature: Words = TITLE) -> list[list[int]]:
    column = texts if isinstance(texts, pa.ChunkedArray) else pa.chunked_array([pa.array(texts, pa.string())])
    found: list[list[int]] = feature.read(column, "x").to_pylist()
    return found


def test_words_are_read_in_their_order() -> None:
    toy, story, oil, two = KNOWN.values()
    assert ids(["Toy Story", "story: TOY!", "Öl/2", "toy toy"]) == [[toy, story], [story, toy], [oil, two], [toy, toy]]


def test_no_text_has_no_words() -> None:
    assert ids([None, "", " ... ", "toy"]) == [[], [], [], [KNOWN["toy"]]]
    assert ids(pa.chunked_array([pa.nulls(2)])) == [[], []]


def test_the_first_words_are_kept() -> None:
    a, b, c, d, _ = (of[0] for of in ids(["a", "b", "c", "d", "e"]))
    assert ids(["a b c d e", "a b c d"]) == [[a, b, c, d]] * 2


def test_words_of_any_language_are_words() -> None:
    assert words_of("Amélie, Седьмая печать 七人の侍 (1954)") == ["amélie", "седьмая", "печать", "七人の侍", "1954"]
    assert words_of("Ame\u0301lie") == words_of("AMÉLIE") == ["amélie"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_any_column_of_strings_is_read_alike_in_any_chunks(kind: pa.DataType) -> None:
    texts = ["Toy Story", None, "toy", "Toy Story"]
    parts = [pa.array(part, pa.string()).cast(kind) for part in (texts[:1], texts[1:], texts[:0])]
    assert ids(pa.chunked_array(parts)) == ids(texts)


def test_another_process_hashes_alike() -> None:
    program = (
        "import pyarrow as pa; from rtrain import Words; "
        "print(Words(name='t', rows=100000).read(pa.chunked_array([['toy story öl 2']]), 'x').to_pylist()[0])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == str(list(KNOWN.values()))


def test_ids_are_rows_of_the_table() -> None:
    found = ids([f"word{n}" for n in range(500)], Words(name="title", rows=7))
    assert {of[0] for of in found} == set(range(7))


def side(folder: Path, rows: list[dict[str, Any]], feature: Words | Text = TITLE) -> SideFeatures:
    pq.write_table(pa.Table.from_pylist(rows), folder / "side.parquet")
    return SideFeatures(source=str(folder / "side.parquet"), key="id", features=(feature,))


def test_a_title_is_read_by_id(tmp_path: Path) -> None:
    rows = [{"id": 3, "title": "Toy Story"}, {"id": 0, "title": None}, {"id": 1, "title": "story"}]
    found = side(tmp_path, rows * 2).open(np.array([0, 1, 3]), rows=5, of="item")["title"]
    assert found.lengths.tolist() == [0, 1, 0, 2, 0]
    assert found.values.tolist() == [KNOWN["story"], KNOWN["toy"], KNOWN["story"]]


@pytest.mark.parametrize(
    ("message", "rows"),
    [
        ("column 'title' is int64, but Words need strings", [{"id": 0, "title": 3}]),
        ("column 'title' is list<element: string>, but Words need strings", [{"id": 0, "title": ["toy"]}]),
        ("column 'title' is missing", [{"id": 0, "name": "toy"}]),
        ("id 0 has another 'title' at row 1 than at row 0", [{"id": 0, "title": t} for t in ("toy box", "box toy")]),
    ],
)
def test_bad_input_is_one_line(message: str, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        side(tmp_path, rows).open(np.array([0]), rows=1, of="item")
    assert message in str(error.value) and "side.parquet" in str(error.value) and "\n" not in str(error.value)


def test_a_text_is_read_by_id_in_words_or_tokens(tmp_path: Path) -> None:
    import tokenizers

    rows = [{"id": 3, "title": "the cat sat on the mat"}, {"id": 0, "title": None}, {"id": 1, "title": "The Cat"}]
    same = Text(name="title", rows=TITLE.rows, max_length=TITLE.longest)
    words, texts = (side(tmp_path, rows * 2, f).open(np.array([0, 1, 3]), rows=5, of="item") for f in (TITLE, same))
    assert words["title"].values.tolist() == texts["title"].values.tolist() and len(texts["title"].values) == 6
    assert texts["title"].offsets.tolist() == words["title"].offsets.tolist() == [0, 0, 2, 2, 6, 6]
    file = trained(tmp_path)
    feature = Text(name="title", tokenizer=TokenizerFile(file=file), max_length=3)
    given = side(tmp_path, rows, feature)
    own = tokenizers.Tokenizer.from_file(file)
    own.no_truncation()
    own.no_padding()
    expected = [own.encode(text, add_special_tokens=False).ids[:3] for text in ("The Cat", rows[0]["title"])]
    found = given.open(np.array([0, 1, 3]), rows=5, of="item")["title"]
    assert found.values.tolist() == [*expected[0], *expected[1]] and found.lengths.tolist() == [0, 3, 0, 3, 0]
    facts = Pairs(source="x", users=4, items=9, item_features=given, negatives=Negatives(count=0)).facts
    assert facts.texts == {"item_title": 3} and facts.item_features == {"item_title": feature.table_rows}
    assert from_dict(to_dict(given)) == given
    with pytest.raises(DataError, match=r"side.parquet: column 'title' is int64, but the schema needs string"):
        side(tmp_path, [{"id": 0, "title": 3}], same).open(np.array([0]), rows=1, of="item")
    with pytest.raises(ConfigError, match="feature 'title' has a table of its own here"):
        side(tmp_path, rows, Text(name="title", rows=9, table="words"))


@pytest.mark.parametrize("field", ["rows", "longest"])
def test_a_config_that_cannot_be_is_one_line(field: str) -> None:
    with pytest.raises(ConfigError, match=f"^feature 'title': {field} must be at least 1, got 0$"):
        Words(name="title", **{field: 0})


def test_a_model_is_told_which_features_are_texts(tmp_path: Path) -> None:
    given = side(tmp_path, [{"id": 0, "title": "toy"}])
    facts = Pairs(
        source="x", users=4, items=9, user_features=given, item_features=given, negatives=Negatives(count=0)
    ).facts
    assert facts.texts == {"item_title": 4} and facts.item_features == {"item_title": 100_000}
