"""Texts as features: words and tokens in their order, of training rows and of requests alike."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rtrain import text
from rtrain.config import from_dict, to_dict
from rtrain.data.encode import encode
from rtrain.data.tokenize import tokenize
from rtrain.data.tokens import TOKENIZER
from rtrain.data.words import Words
from rtrain.errors import ConfigError, DataError
from rtrain.export.request import row_model
from rtrain.schema import Id, Schema
from rtrain.text import Text, TokenizerFile

TEXTS = ["the cat sat on the mat", None, "", "Öl", "the cat sat on the mat", "a cat on a mat"]


def trained(folder: Path, size: int = 300) -> str:
    """A tokenizer.json that cuts and pads, which is not what a feature asks for."""
    import tokenizers

    (folder / "text.txt").write_text("the cat sat on the mat\n" * 20)
    shards = Path(tokenize([str(folder / "text.txt")], str(folder / f"shards-{size}"), tokenizer=f"bpe:{size}"))
    made = tokenizers.Tokenizer.from_file(str(shards / TOKENIZER))
    made.enable_truncation(2)
    made.enable_padding(length=50)
    made.save(str(folder / f"{size}.json"))
    return str(folder / f"{size}.json")


def lists(feature: Text, kind: pa.DataType | None = None) -> list[list[int]]:
    column = pa.chunked_array([pa.array(part, kind or pa.string()) for part in (TEXTS[:2], TEXTS[2:])])
    table = pa.table({"t": column})
    (found,) = encode(table, Schema(features=(feature,)), label=False, where="request", first_row=0).lists
    return [found.values[a:b].tolist() for a, b in zip(found.offsets, found.offsets[1:], strict=False)]


def test_tokens_are_the_library_s_own_and_no_more_than_are_read(tmp_path: Path) -> None:
    import tokenizers

    file = trained(tmp_path)
    own = tokenizers.Tokenizer.from_file(file)
    own.no_truncation()
    own.no_padding()
    feature = Text(name="t", tokenizer=TokenizerFile(file=file), max_length=5)
    by_hand = [own.encode(text or "", add_special_tokens=False).ids[:5] for text in TEXTS]
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())):
        assert lists(feature, kind) == by_hand
    assert lists(replace(feature, max_length=99))[3] == own.encode("Öl").ids and len(by_hand[5]) == 5
    assert feature.table_rows == own.get_vocab_size() > max(max(ids, default=0) for ids in by_hand)


def test_words_are_those_of_items_texts() -> None:
    feature = Text(name="t", rows=1000, max_length=3)
    by_hand = Words(name="t", rows=1000, longest=3).read(pa.chunked_array([TEXTS]), "t").to_pylist()
    assert lists(feature) == by_hand and [len(ids) for ids in by_hand] == [3, 0, 0, 1, 3, 3]


def test_a_request_has_the_text() -> None:
    row = row_model(Schema(features=(Text(name="t", rows=9),)))
    assert row(t="a text").model_dump() == {"t": "a text"} and row().model_dump() == {"t": None}
    with pytest.raises(ValueError, match="1 validation error"):
        row(t=["a", "text"])


def test_a_config_is_read_where_the_file_is_not_and_another_file_is_refused(tmp_path: Path) -> None:
    first = Path(trained(tmp_path))
    feature = Text(name="t", tokenizer=TokenizerFile(file=str(first)))
    stored = to_dict(Schema(features=(feature,)))
    first.unlink()
    assert from_dict(stored) == Schema(features=(feature,)) and feature.tokenizer
    text._HELD.clear()  # as in a process of its own
    Path(trained(tmp_path, 260)).rename(first)
    for work in (feature.tokenizer.check, lambda: TokenizerFile(file=str(first), sha256=feature.tokenizer.sha256)):
        with pytest.raises(DataError) as caught:
            work()
        said = str(caught.value)
        assert said.startswith(f"{first}: tokenizer of another version: ") and "\n" not in said
        assert feature.tokenizer.sha256 in said and TokenizerFile(file=str(first)).sha256 in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "feature 't': give either rows (for hashed words) or tokenizer"),
        ({"rows": -1}, "feature 't': rows must be at least 1, got -1"),
        ({"rows": 5, "max_length": 0}, "feature 't': max_length must be at least 1, got 0"),
    ],
)
def test_what_cannot_be(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Text(name="t", **given)
    assert said in str(caught.value)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="there is no such file, which is to be a tokenizer; did you mean 'tokeniz"):
        TokenizerFile(file=str(tmp_path / "tokeniser.json"))
    with pytest.raises(DataError, match=r"tokenizer: .* cannot be read \("):
        TokenizerFile(file=str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="column 't' is int64, but the schema needs string"):
        schema = Schema(features=(Text(name="t", rows=5),))
        encode(pa.table({"t": [1]}), schema, label=False, where="request", first_row=0)
    with pytest.raises(ConfigError, match=r"schema.group: 't' is not an Id feature"):
        Schema(features=(Text(name="t", rows=5), Id(name="x", rows=2)), group="t")
