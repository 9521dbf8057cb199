"""A language export in memory: a Hugging Face folder with its tokenizer, read by transformers."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rtrain.data.tokens import TOKENIZER
from rtrain.errors import CheckpointError, ConfigError, DataError, RtrainError, briefly, one_line
from rtrain.export.head import HEAD
from rtrain.export.huggingface import CONFIG, INDEX, is_language
from rtrain.export.language import verify
from rtrain.export.weights import fetched
from rtrain.scratch import Scratch
from rtrain.storage import Folder, StorageDown

READ = (".json", ".safetensors", ".jinja")
"""How files end that are read of an export; no pickle."""
SHRINKS = 4
"""Times that a text may become shorter before it is cut into tokens, as where runs of blanks are one."""


@dataclass(frozen=True)
class Language:
    """A causal model and its tokenizer."""

    model: Any
    tokenizer: Any
    context: int
    """Tokens of a prompt and its answer together, at most."""
    ends: frozenset[int]
    """Tokens that end an answer."""

    @property
    def vocab(self) -> int:
        """Different tokens."""
        return int(self.model.config.vocab_size)

    @property
    def has_chat(self) -> bool:
        """Whether its tokenizer says how a conversation is written."""
        return bool(self.tokenizer.chat_template)

    @cached_property
    def most_bytes(self) -> int:
        """Of a text that may fit the context: a longer one need not be read to be refused."""
        longest = max(map(len, self.tokenizer.get_vocab()))
        return self.context * longest * SHRINKS

    def ids(self, text: str) -> list[int]:
        """The tokens of a prompt."""
        found: list[int] = self.tokenizer(text)["input_ids"]
        return found

    def text(self, ids: list[int]) -> str:
        """The text of an answer."""
        found: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return found

    def chat(self, messages: list[dict[str, str]]) -> str:
        """A conversation as the prompt of its next turn.

        Raises:
            DataError: the tokenizer has no chat template, or its template refuses the conversation.
        """
        if not self.has_chat:
            raise DataError(
                "messages: this model's tokenizer has no chat template. Ask /v1/completions, or put a "
                "chat_template.jinja beside its tokenizer.json"
            )
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template may raise anything
            raise DataError(f"messages: the chat template refuses them ({one_line(error)})") from None


def load(uri: str, *, device: str = "") -> Language:
    """Read an export, onto a device; by default a GPU where there is one.

    That of a storage which is not local is fetched into a folder that goes again once it is read.

    Raises:
        CheckpointError: no whole export, one without a tokenizer, or files that were altered since it was exported.
        ConfigError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise ConfigError(
            "serve: the package `transformers` is not installed. Run pip install rtrain[language]"
        ) from None
    told: Any = transformers.utils.logging
    bars = told.is_progress_bar_enabled()
    told.disable_progress_bar()  # of one file, in a replica's log or a verb's answer
    try:
        with _near(uri) as path:
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto", local_files_only=True)
            tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    except (RtrainError, StorageDown):
        raise
    except Exception as error:  # of transformers, safetensors and tokenizers: each its own
        raise CheckpointError(f"{uri}: transformers cannot read it ({briefly(error)})") from None
    finally:
        if bars:
            told.enable_progress_bar()
    model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    end = model.generation_config.eos_token_id
    ends = frozenset() if end is None else frozenset([end] if isinstance(end, int) else end)
    return Language(model, tokenizer, int(model.config.max_position_embeddings), ends)


def intact(uri: str) -> str:
    """The path of a local export whose files are all there, as they were written.

    Raises:
        CheckpointError: no whole export, one without a tokenizer, or files that were altered since it was exported.
        ConfigError: the export is not on a local disk.
    """
    if not Folder(uri).is_local:
        raise ConfigError(
            f"serve: {uri}: vLLM reads a local or mounted folder. Copy it to one, or serve it by --engine rtrain"
        )
    _refuse_partial(uri)
    verify(uri)
    return str(Path(uri).absolute())


def _refuse_partial(uri: str) -> None:
    if not is_language(uri):
        raise CheckpointError(f"{uri}: there is no whole language export: {CONFIG} and {INDEX}")
    if not Folder(uri).exists(TOKENIZER):
        raise CheckpointError(
            f"{uri}: there is no {TOKENIZER}, so it takes no text. Export the run again, or copy its tokenizer there"
        )


@contextmanager
def _near(uri: str) -> Iterator[str]:
    """The path of an intact export on this machine."""
    folder = Folder(uri)
    if folder.is_local:
        yield intact(uri)
        return
    _refuse_partial(uri)
    there = folder.names()
    files: dict[str, str] = folder.read_json(HEAD)["files"] if HEAD in there else {}
    with Scratch("language") as scratch:
        for name, local in fetched(uri, files):
            shutil.move(local, scratch / name)
        for name in there:  # of a folder from elsewhere, and what was put beside one's own, as a chat template
            if name not in files and name.endswith(READ):
                folder.fetch(name, scratch)
        yield str(scratch)
