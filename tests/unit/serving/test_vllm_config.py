"""What Ray Serve's deployment of vLLM is told of an export, its scale and its decoding."""

import json
from pathlib import Path
from typing import Any

import pytest

from rtrain.errors import ConfigError
from rtrain.language.decoding import Decoding
from rtrain.serving.scale import Scale
from rtrain.serving.vllm_config import config_of, context_of


@pytest.fixture
def export(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps({"dtype": "bfloat16", "max_position_embeddings": 512}))
    return str(tmp_path)


def on(scale: Scale | None = None, **decoding: Any) -> dict[str, Any]:
    return {"scale": scale or Scale(), "decoding": Decoding(engine="vllm", **decoding)}


def test_of_a_cpu(export: str) -> None:
    found = config_of(export, "writer", **on())
    assert found["model_loading_config"] == {"model_id": "writer", "model_source": export}
    assert found["accelerator_config"] == {"kind": "cpu"} and "placement_group_config" not in found
    # The export's own numbers, and never a pickle.
    assert found["engine_kwargs"] == {"load_format": "safetensors", "dtype": "bfloat16"}
    assert found["deployment_config"]["num_replicas"] == 1
    assert found["deployment_config"]["max_ongoing_requests"] == 256
    assert context_of(export, Decoding()) == 512
    assert context_of(export, Decoding(engine="vllm", engine_args=("max_model_len=64",))) == 64


@pytest.mark.parametrize(
    ("gpus", "args", "wanted"),
    [
        (0.25, (), {"gpu_memory_utilization": 0.225}),
        (0.5, ("gpu_memory_utilization=0.3",), {"gpu_memory_utilization": 0.3}),
        (1, (), {}),
        (4, (), {"tensor_parallel_size": 4}),
        (4, ("pipeline_parallel_size=2",), {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}),
        (4, ("tensor_parallel_size=4",), {"tensor_parallel_size": 4}),
    ],
)
def test_of_gpus(export: str, gpus: float, args: tuple[str, ...], wanted: dict[str, Any]) -> None:
    found = config_of(export, "writer", **on(Scale(gpus=gpus), engine_args=args))
    assert found["engine_kwargs"] == {"load_format": "safetensors", "dtype": "bfloat16"} | wanted
    assert found["accelerator_config"] == {"kind": "gpu"}
    assert found.get("placement_group_config") == ({"bundle_per_worker": {"GPU": gpus}} if gpus < 1 else None)
    assert "num_gpus" not in found["deployment_config"]["ray_actor_options"], "they are of the engine's workers"


def test_of_lanes_guesses_and_replicas(export: str) -> None:
    scale = Scale(least=1, most=4, ongoing=16)
    found = config_of(export, "writer", **on(scale, lanes=16, waiting=4, guesses=3), first=2)
    assert found["engine_kwargs"]["max_num_seqs"] == 16
    told = found["engine_kwargs"]["speculative_config"]
    assert (told["method"], told["num_speculative_tokens"]) == ("ngram", 3)
    deployment = found["deployment_config"]
    assert deployment["max_ongoing_requests"] == 20
    scaling = deployment["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"], scaling["initial_replicas"]) == (1, 4, 2)


@pytest.mark.parametrize(
    ("scale", "decoding", "why"),
    [
        (Scale(), {"engine_args": ("max_num_seqs=4",)}, "max_num_seqs: say it as lanes"),
        (Scale(), {"engine_args": ("load_format=pt",)}, "load_format: exports are safetensors"),
        (Scale(), {"engine_args": ("speculative_config={}",), "guesses": 2}, "guesses says it"),
        (Scale(gpus=1), {"engine_args": ("tensor_parallel_size=2",)}, "over 2 GPUs, and Scale.gpus is 1"),
        (Scale(gpus=4), {"engine_args": ("tensor_parallel_size=2",)}, "over 2 GPUs, and Scale.gpus is 4"),
        (Scale(gpus=3), {"engine_args": ("pipeline_parallel_size=2",)}, "over 2 GPUs, and Scale.gpus is 3"),
        (Scale(gpus=0.5), {"engine_args": ("tensor_parallel_size=2",)}, r"over 2 GPUs, and Scale.gpus is 0\.5"),
        (Scale(), {"engine_args": ("tensor_parallel_size=x",)}, "tensor_parallel_size: a whole number"),
        (Scale(), {"engine_args": ("max_model_len=513",)}, "max_model_len: 1 to 512, the model's context, got 513"),
        (Scale(), {"engine_args": ("max_model_len=4k",)}, "max_model_len: 1 to 512, the model's context, got '4k'"),
    ],
)
def test_what_does_not_fit(export: str, scale: Scale, decoding: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        config_of(export, "writer", **on(scale, **decoding))
