"""How a language model answers: what fits, and that it is kept with a version."""

from typing import Any

import pytest

from rtrain import config
from rtrain.errors import ConfigError, RtrainError
from rtrain.language.decoding import Decoding
from rtrain.language.guard import Guard


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"lanes": 0}, "Decoding.lanes: must be at least 1, got 0"),
        ({"guesses": -2}, "Decoding.guesses: must be at least 0, got -2"),
        ({"waiting": -1}, "Decoding.waiting: must be at least 0, got -1"),
        ({"draft": "runs/nowhere"}, "there is no export in 'runs/nowhere'"),
        ({"engine": "sglang"}, "engine: (rtrain or vllm, got|expected .*) 'sglang'"),
        ({"engine_args": ("a=1",)}, "of vLLM alone"),
        ({"engine": "vllm", "engine_args": ("a",)}, "NAME=VALUE, as max_model_len=4096, got 'a'"),
        ({"engine": "vllm", "engine_args": ("a=1", "a=2")}, "a is said twice"),
        ({"engine": "vllm", "together": False}, "Decoding.together: vLLM has none"),
    ],
)
def test_what_does_not_fit(options: dict[str, Any], why: str) -> None:
    with pytest.raises(RtrainError, match=why):
        Decoding(**options)
    with pytest.raises(RtrainError, match=why):
        config.override(Decoding(), options)


def test_it_is_kept_with_a_version() -> None:
    of = Decoding(lanes=2, guesses=4, guard=Guard())
    assert config.from_dict(config.to_dict(of)) == of
    assert of.options() == {
        "lanes": 2, "waiting": 64, "together": True, "guesses": 4, "draft": "", "guard": Guard()
    }  # fmt: skip
    assert Decoding().options()["lanes"] == 8
    vllm = Decoding(engine="vllm", engine_args=("max-model-len=4096", "quantization=fp8", 'hf_overrides={"a": [1]}'))
    assert config.from_dict(config.to_dict(vllm)) == vllm
    assert vllm.arguments() == {"max_model_len": 4096, "quantization": "fp8", "hf_overrides": {"a": [1]}}
    with pytest.raises(ConfigError, match="guard: expected"):
        config.override(of, {"guard": "NoSecrets"})
