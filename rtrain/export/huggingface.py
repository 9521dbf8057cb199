"""A decoder as Hugging Face files, so that everything which reads those can run it, and the way back.

{folder}/config.json                    Llama's, or Qwen2's for biased queries, keys and values
         model-00001-of-00002.safetensors ...  float32, under Hugging Face's names
         model.safetensors.index.json   which tensor lies in which file; written last
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from rtrain.checkpoint.format import Stored
from rtrain.errors import DataError, did_you_mean
from rtrain.export.weights import put, put_text, save
from rtrain.models.decoder import Decoder
from rtrain.storage import Folder

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
FILE_BYTES = 2 * 1024**3
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "mlp.w_gate": "mlp.gate_proj",
    "mlp.w_up": "mlp.up_proj",
    "mlp.w_down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
"""A block's modules, ours -> theirs."""
OUTSIDE = {
    "embed.tokens.weight": "model.embed_tokens.weight",
    "head.norm.weight": "model.norm.weight",
    "head.out.weight": "lm_head.weight",
}


def their_name(name: str) -> str:
    """Hugging Face's name of a logical tensor, such as `blocks.3.mlp.w_up.weight`."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    number, inner = re.fullmatch(r"blocks\.(\d+)\.(.+)", name).groups()  # type: ignore[union-attr]
    module, _, leaf = inner.rpartition(".")
    return f"model.layers.{number}.{NAMES[module]}.{leaf}"


def their_config(config: Decoder, *, context: int) -> dict[str, Any]:
    """config.json of the model; `context`: tokens of the sequences that it was trained on."""
    kind = "qwen2" if config.qkv_bias else "llama"
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv,
        "max_position_embeddings": context,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "use_cache": True,
        "dtype": "float32",
    }


def our_config(theirs: dict[str, Any], where: str) -> Decoder:
    """The config of a Hugging Face folder.

    Raises:
        DataError: an architecture, an activation or a rotary scaling that rtrain's decoder does not have.
    """
    kind = str(theirs.get("model_type"))
    if kind not in ARCHITECTURES:
        near = did_you_mean(kind, tuple(ARCHITECTURES))
        raise DataError(f"{where}: model_type {kind!r} is not known{near}. Known are {', '.join(ARCHITECTURES)}")
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    refused = {
        "hidden_act": theirs.get("hidden_act", "silu") != "silu",
        "rope_parameters": rope.get("rope_type", rope.get("type", "default")) != "default",
        "use_sliding_window": bool(theirs.get("use_sliding_window")),
        "attention_bias": bool(theirs.get("attention_bias")),
        "mlp_bias": bool(theirs.get("mlp_bias")),
        "head_dim": theirs.get("head_dim") not in (None, theirs["hidden_size"] // theirs["num_attention_heads"]),
    }
    for key, bad in refused.items():
        if bad:
            raise DataError(f"{where}: {key}={theirs.get(key)!r} is not what rtrain's decoder computes")
    return Decoder(
        vocab=theirs["vocab_size"],
        layers=theirs["num_hidden_layers"],
        dim=theirs["hidden_size"],
        heads=theirs["num_attention_heads"],
        kv_heads=theirs.get("num_key_value_heads"),
        hidden=theirs["intermediate_size"],
        qkv_bias=kind == "qwen2",
        rope_theta=float(rope.get("rope_theta", theirs.get("rope_theta", 10000.0))),
        norm_eps=theirs.get("rms_norm_eps", 1e-6),
        tied=bool(theirs.get("tie_word_embeddings", False)),
    )


def is_language(uri: str) -> bool:
    """Whether a folder is a whole export of a language model."""
    names = Folder(uri).names()
    return INDEX in names and CONFIG in names


def export_decoder(
    config: Decoder, stored: Stored, uri: str, *, context: int, check: Callable[[], None] = lambda: None
) -> dict[str, str]:
    """Write the model of a checkpoint, whatever layout it was trained at; its files, and the sha256 of each.

    Tensors pass through memory in files of at most about 2 GiB. `check`: as in `rtrain.export.artifact.export`.
    """
    return write_decoder(config, _Stored(stored), uri, context=context, check=check)


def write_decoder(
    config: Decoder, weights: Mapping[str, Tensor], uri: str, *, context: int, check: Callable[[], None] = lambda: None
) -> dict[str, str]:
    """Write weights, by logical name, as a Hugging Face folder; its files, and the sha256 of each."""
    folder = Folder(uri)
    check()
    folder.discard(INDEX)
    files = put_text(folder, CONFIG, json.dumps(their_config(config, context=context), indent=2))
    packs = list(_packs(weights))
    index: dict[str, str] = {}
    total = 0
    for number, names in enumerate(packs, start=1):
        file = f"model-{number:05d}-of-{len(packs):05d}.safetensors"
        tensors = {their_name(n): weights[n].detach().contiguous() for n in names}
        total += sum(t.nbytes for t in tensors.values())
        files |= put(folder, file, partial(save, tensors), check)
        index |= dict.fromkeys(tensors, file)
    check()
    return files | put_text(
        folder, INDEX, json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1)
    )


def _packs(weights: Mapping[str, Tensor]) -> Iterator[list[str]]:
    pack: list[str] = []
    size = 0
    for name in sorted(weights):
        bytes_here = weights.nbytes(name) if isinstance(weights, _Stored) else weights[name].nbytes
        if pack and size + bytes_here > FILE_BYTES:
            yield pack
            pack, size = [], 0
        pack.append(name)
        size += bytes_here
    yield pack


class _Stored(Mapping[str, Tensor]):
    """A checkpoint's weights, read one at a time."""

    def __init__(self, stored: Stored):
        self.stored = stored
        self.logical = stored.weights()

    def __getitem__(self, name: str) -> Tensor:
        return self.stored.tensor(self.logical[name])

    def nbytes(self, name: str) -> int:
        """Bytes of a weight, without reading it."""
        return self.stored.nbytes(self.logical[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.logical)

    def __len__(self) -> int:
        return len(self.logical)
