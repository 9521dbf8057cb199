"""A language export on a storage that is not local."""

from pathlib import Path

import fsspec
import pytest
import torch

from rtrain.errors import CheckpointError, ConfigError
from rtrain.language.model import intact, load

URI = "memory://exports/writer"


@pytest.fixture
def there(exported: str) -> str:
    memory = fsspec.filesystem("memory")
    if memory.exists("/exports"):
        memory.rm("/exports", recursive=True)
    for file in Path(exported).iterdir():
        memory.pipe_file(f"/exports/writer/{file.name}", file.read_bytes())
    return URI


def test_it_is_read_as_from_a_folder(exported: str, there: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/exports/writer/chat_template.jinja", b"{{ messages[0].content }}")
    memory.pipe_file("/exports/writer/pytorch_model.bin", b"a pickle, which nobody asks for")
    here, read = load(exported, device="cpu"), load(there, device="cpu")
    assert (read.context, read.ends, read.has_chat) == (here.context, here.ends, True)
    ours, theirs = here.model.state_dict(), read.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    ids = torch.tensor([here.ids("def load(")])
    assert read.ids("def load(") == ids[0].tolist()
    assert torch.equal(here.model(ids).logits, read.model(ids).logits)


def test_what_was_altered_there_is_refused(there: str) -> None:
    memory = fsspec.filesystem("memory")
    (weights,) = (name for name in memory.ls("/exports/writer", detail=False) if name.endswith(".safetensors"))
    whole = memory.cat_file(weights)
    memory.pipe_file(weights, whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"model-00001-of-00001.safetensors is missing or was altered"):
        load(there, device="cpu")
    memory.rm_file("/exports/writer/tokenizer.json")
    with pytest.raises(CheckpointError, match=r"there is no tokenizer.json"):
        load(there, device="cpu")
    with pytest.raises(ConfigError, match="vLLM reads a local or mounted folder. Copy it to one, or serve it by"):
        intact(there)
