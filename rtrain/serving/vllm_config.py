"""What Ray Serve's deployment of vLLM is told of an export; says it without vLLM."""

import json
from math import prod
from pathlib import Path
from typing import Any

from rtrain.errors import ConfigError
from rtrain.export.huggingface import CONFIG
from rtrain.language.decoding import WAITING, Decoding
from rtrain.serving.scale import Scale

ON_THEIR_WAY = 16
"""Requests that may wait outside of an engine that computes, and has waiting, as many as it may; others are a 429."""
AT_ONCE = 256
"""Answers that vLLM computes at once by itself."""
OF_GPU = 0.9
"""Of a replica's share of a GPU's memory what vLLM may take, which is what vLLM takes of a whole one by itself."""
GUESSED_FROM = {"prompt_lookup_min": 3, "prompt_lookup_max": 4}
"""Tokens that have to be the same earlier, as where rtrain's own engine guesses."""
SAID_ELSEWHERE = {
    "model": "it is the export",
    "served_model_name": "it is the run's name",
    "load_format": "exports are safetensors, and nothing else is read",
    "max_num_seqs": "say it as lanes",
    "distributed_executor_backend": "Ray Serve sets it",
    "tokenizer": "it is the export's",
    "hf_config_path": "it is the export's",
}
"""Arguments of vLLM that nobody sets by themselves."""
CONTEXT, UNKNOWN = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 1 << 20
WAYS = ("tensor_parallel_size", "pipeline_parallel_size")


def config_of(export: str, name: str, decoding: Decoding, scale: Scale, first: int = 0) -> dict[str, Any]:
    """Fields of an `LLMConfig` for the intact export in this folder; `name` is what the model is called.

    Raises:
        ConfigError: arguments of vLLM that are said elsewhere, or do not fit the GPUs of a replica.
    """
    said = decoding.arguments()
    for argument, why in SAID_ELSEWHERE.items():
        if argument in said:
            raise ConfigError(f"Decoding.engine_args: {argument}: {why}")
    if decoding.guesses and "speculative_config" in said:
        raise ConfigError("Decoding.engine_args: speculative_config: guesses says it. Leave out one of them")
    if decoding.draft and not decoding.guesses:
        raise ConfigError("guesses: must be at least 1 where draft is set, got 0")
    longest = _longest(export)
    if not isinstance(context := said.get("max_model_len", 1), int) or not 0 < context <= (longest or context):
        raise ConfigError(f"Decoding.engine_args: max_model_len: 1 to {longest}, the model's context, got {context!r}")
    _lay_out(said, scale.gpus)
    own: dict[str, Any] = {"load_format": "safetensors", "dtype": _dtype(export)}
    if decoding.lanes:
        own["max_num_seqs"] = decoding.lanes
    if decoding.guesses:
        how = {"model": decoding.draft} if decoding.draft else {"method": "ngram"} | GUESSED_FROM
        own["speculative_config"] = how | {"num_speculative_tokens": decoding.guesses}
    if 0 < scale.gpus < 1:
        own["gpu_memory_utilization"] = round(OF_GPU * scale.gpus, 4)
    waiting = WAITING if decoding.waiting is None else decoding.waiting
    deployment = scale.options(first)
    deployment["max_ongoing_requests"] = min(scale.at_once, (decoding.lanes or AT_ONCE) + waiting)
    deployment["max_queued_requests"] = ON_THEIR_WAY
    # GPUs are of the workers that the engine starts; the replica itself holds none.
    deployment["ray_actor_options"] = {"num_cpus": 0.5}
    kind = "gpu" if scale.gpus else "cpu"
    found = {
        "model_loading_config": {"model_id": name, "model_source": export},
        "accelerator_config": {"kind": kind},
        "engine_kwargs": own | said,
        "deployment_config": deployment,
        # Nothing is told to anybody unasked.
        "runtime_env": {"env_vars": {"VLLM_NO_USAGE_STATS": "1"}},
    }
    if 0 < scale.gpus < 1:
        found["placement_group_config"] = {"bundle_per_worker": {"GPU": scale.gpus}}
    return found


def _lay_out(said: dict[str, Any], gpus: float) -> None:
    """Over the GPUs of a replica: where nothing is said, tensor parallelism over as many as pipelines leave.

    Raises:
        ConfigError: other ways than GPUs.
    """
    for name in WAYS:
        if not isinstance(said.get(name, 1), int) or said.get(name, 1) < 1:
            raise ConfigError(f"Decoding.engine_args: {name}: a whole number from 1 on, got {said[name]!r}")
    if gpus > 1 and WAYS[0] not in said and gpus >= (stages := said.get(WAYS[1], 1)):
        said[WAYS[0]] = int(gpus) // stages
    ways = prod(said.get(name, 1) for name in WAYS)
    if gpus and ways != max(1, gpus):
        raise ConfigError(
            f"Decoding.engine_args: the model is laid out over {ways} GPUs, and Scale.gpus is {gpus:g}. Set both alike"
        )


def context_of(export: str, decoding: Decoding) -> int:
    """Tokens of a prompt and its answer together, at most."""
    return int(decoding.arguments().get("max_model_len") or _longest(export) or UNKNOWN)


def vocab_of(export: str) -> int:
    """Different tokens."""
    return int(_config(export)["vocab_size"])


def _dtype(export: str) -> str:
    """Of the weights: vLLM by itself computes in half of what float32 weights have, which is another model."""
    config = _config(export)
    return str(config.get("dtype") or config.get("torch_dtype") or "auto")


def _longest(export: str) -> int:
    """The model's context; 0: its config does not say it so."""
    config = _config(export)
    return int(next((config[name] for name in CONTEXT if name in config), 0))


def _config(export: str) -> dict[str, Any]:
    """Of a model of texts and more, with what it says of texts."""
    found: dict[str, Any] = json.loads(Path(export, CONFIG).read_text())
    of_texts: dict[str, Any] = found.get("text_config", {})
    return found | of_texts
