"""Text of tokens: its parts are the whole, and no part of a stop text goes out."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtrain.export.tokenizer import byte_tokenizer
from rtrain.language.text import Detokenizer, Stops


def test_the_byte_tokenizer_is_utf8() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer.from_str(json.dumps(byte_tokenizer()))
    text = "def é(x):\n\t€ 𝄞\x00 end  "
    assert made.encode(text).ids == list(text.encode())
    assert made.decode(list(text.encode())) == text
    assert [made.encode(chr(c)).ids for c in range(128)] == [[c] for c in range(128)]


@given(st.one_of(st.binary(max_size=90), st.text(max_size=60).map(str.encode)))
def test_parts_are_the_whole(content: bytes) -> None:
    words = Detokenizer(lambda ids: bytes(ids).decode(errors="replace"))
    parts = [words.add(byte) for byte in content]
    assert "".join(parts) + words.rest() == content.decode(errors="replace")


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.integers(1, 4))
def test_stops_cut_where_the_whole_text_would_be_cut(text: str, stops: list[str], size: int) -> None:
    cut = Stops(stops)
    out, ended = "", False
    for at in range(0, len(text), size):
        part, ended = cut.add(text[at : at + size])
        out += part
        if ended:
            break
    seen = text[: at + size] if text else ""
    places = [seen.find(stop) for stop in stops if stop in seen]
    assert ended == bool(places)
    assert out + ("" if ended else cut.rest()) == (seen[: min(places)] if places else text)


def test_nothing_is_held_that_begins_no_stop() -> None:
    assert [Stops(["xyz"]).add(text)[0] for text in ("ab", "abx", "abxy")] == ["ab", "ab", "ab"]


def test_a_trained_tokenizer_goes_with_its_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from rtrain.data.tokenize import tokenize
    from rtrain.data.tokens import Shards
    from rtrain.export.tokenizer import write_tokenizer

    (tmp_path / "words.txt").write_text("a few words, a few more words é\n" * 20)
    shards = Shards(Path(tokenize([str(tmp_path / "words.txt")], str(tmp_path / "shards"), tokenizer="bpe:270")), 8)
    write_tokenizer(shards, str(tmp_path / "export"))
    read = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "export")
    end = json.loads((tmp_path / "export" / "generation_config.json").read_text())["eos_token_id"]
    assert read.decode([end]) == "<|end|>" and read.eos_token_id == end
    ids = read("a few words")["input_ids"]
    assert len(ids) < 11 and read.decode(ids) == "a few words"
