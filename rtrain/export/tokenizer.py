"""A language export's tokenizer, in the files that transformers reads, so that what is served takes text.

{folder}/tokenizer.json           that of the data; of bytes, a byte-level BPE of 256 tokens and no merges
         tokenizer_config.json    which class reads it
         generation_config.json   the token that ends a document, or none
"""

import json
from collections.abc import Callable
from typing import Any

from rtrain.data.tokenize import BYTES, END
from rtrain.data.tokens import TOKENIZER, Shards
from rtrain.export.huggingface import INDEX
from rtrain.export.weights import put_text
from rtrain.storage import Folder

CONFIG = "tokenizer_config.json"
GENERATION = "generation_config.json"
TEMPLATE = "chat_template.jinja"


def write_tokenizer(shards: Shards, uri: str, check: Callable[[], None] = lambda: None) -> dict[str, str]:
    """Write the tokenizer that the shards were made with, before the model; its files, and the sha256 of each.

    `check`: as in `rtrain.export.artifact`.
    """
    folder = Folder(uri)
    check()
    folder.discard(INDEX)
    end: int | None
    if shards.tokenizer == BYTES:
        content, end = json.dumps(byte_tokenizer(), ensure_ascii=False), 0
    else:
        content = (shards.folder / shards.tokenizer).read_bytes().decode()
        end = _id_of_end(json.loads(content))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {} if end is None or shards.tokenizer == BYTES else {"eos_token": END}
    generation = {"bos_token_id": None, "eos_token_id": end}
    files = put_text(folder, TOKENIZER, content) | put_text(folder, CONFIG, json.dumps(config, indent=2))
    return files | put_text(folder, GENERATION, json.dumps(generation, indent=2))


def byte_tokenizer() -> dict[str, Any]:
    """The tokenizer.json whose ids are the bytes of UTF-8."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {_letter(byte): byte for byte in range(256)}, "merges": [],
        },
    }  # fmt: skip


def has_chat(uri: str) -> bool:
    """Whether a language export says how a conversation is written."""
    folder = Folder(uri)
    return folder.exists(TEMPLATE) or (folder.exists(CONFIG) and bool(folder.read_json(CONFIG).get("chat_template")))


def _letter(byte: int) -> str:
    """What byte-level tokenizers write for it (Radford et al., 2019): itself where it prints, else one above 255."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in prints:
        return chr(byte)
    return chr(256 + [b for b in range(256) if b not in prints].index(byte))


def _id_of_end(content: dict[str, Any]) -> int | None:
    found: list[int] = [token["id"] for token in content.get("added_tokens", ()) if token["content"] == END]
    return found[0] if found else None
