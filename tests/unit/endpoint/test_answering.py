"""A version answers as the one before it, but for what is said of it."""

from typing import Any

import pytest

from rtrain.endpoint.answering import Answering
from rtrain.endpoint.state import Deployed
from rtrain.errors import ConfigError
from rtrain.language.decoding import Decoding
from rtrain.language.guard import Guard
from rtrain.serving.scale import Scale
from rtrain.stages.config import TwoStages

WAS = Answering(
    scale=Scale(least=2, most=6, gpus=0.5, ahead_s=30),
    decoding=Decoding(guesses=3, guard=Guard()),
    stages=TwoStages(retriever="/runs/finds", user="whom", timeout_ms=20),
)


def deployed(answering: Answering) -> Deployed:
    return Deployed(app="a-1-x", number=1, export="/runs/one/export", run="one", **answering.to_json())


def test_what_is_not_said_is_as_before() -> None:
    assert Answering.of(deployed(WAS)) == WAS == WAS.but()
    first = Answering.of(None)
    assert first == Answering(scale=Scale(), decoding=None, stages=None)
    assert Answering.of(deployed(first)) == first


@pytest.mark.parametrize(
    ("replicas", "scale"),
    [
        (4, Scale(least=4, gpus=0.5, ahead_s=30)),
        ({"gpus": 0.25}, Scale(least=2, most=6, gpus=0.25, ahead_s=30)),
        ({"gpus": 0, "shards": 2}, Scale(least=2, most=6, shards=2, ahead_s=30)),
        (Scale(least=3), Scale(least=3)),
    ],
)
def test_of_replicas(replicas: Any, scale: Scale) -> None:
    found = WAS.but(replicas)
    assert (found.scale, found.decoding, found.stages) == (scale, WAS.decoding, WAS.stages)


@pytest.mark.parametrize(
    ("said", "decoding"),
    [
        ({"lanes": 2}, Decoding(lanes=2, guesses=3, guard=Guard())),
        ({"guard": None}, Decoding(guesses=3)),
        ({"guesses": 0}, Decoding(guard=Guard())),
        (Decoding(lanes=2), Decoding(lanes=2)),
    ],
)
def test_of_a_language_models_answers(said: Any, decoding: Decoding) -> None:
    found = WAS.but(decoding=said)
    assert (found.scale, found.decoding, found.stages) == (WAS.scale, decoding, WAS.stages)
    assert Answering.of(None).but(decoding={"lanes": 2}).decoding == Decoding(lanes=2)


def test_of_stages() -> None:
    found = WAS.but(stages={"timeout_ms": 50, "ranker": "/runs/ranks"})
    assert found.stages == TwoStages(retriever="/runs/finds", ranker="/runs/ranks", user="whom", timeout_ms=50)
    assert WAS.but(stages=TwoStages(ranker="/r")).stages == TwoStages(ranker="/r")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"replicas": {"gpu": 1}}, "Scale has no field 'gpu'; did you mean 'gpus'?"),
        ({"replicas": {"tables": "host", "gpus": 0}}, "Scale.tables: host, where all memory is the host's"),
        ({"replicas": 0}, "Scale.least: must be at least 1, got 0"),
        ({"replicas": {"least": 7}}, "Scale.most: 6, less than the 7 of Scale.least"),
        ({"decoding": {"lanes": "many"}}, "lanes: expected int, got 'many'"),
    ],
)
def test_what_does_not_fit(said: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        WAS.but(**said)
    assert why in str(refused.value)
