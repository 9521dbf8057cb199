"""A version answers as the one before it, but for what is said of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rtrain.endpoint.answering import Answering
from rtrain.endpoint.canary import Canary
from rtrain.endpoint.state import Deployed, State
from rtrain.errors import ConfigError, UserError
from rtrain.language.decoding import Decoding
from rtrain.language.guard import Guard
from rtrain.serving.scale import Scale
from rtrain.stages.config import TwoStages
from rtrain.stages.features import SQLite
from rtrain.stages.filters import Without

WAS = Answering(
    scale=Scale(least=2, most=6, gpus=0.5, ahead_s=30),
    decoding=Decoding(guesses=3, guard=Guard()),
    stages=TwoStages(retriever="/runs/finds", user="whom", timeout_ms=20),
)


def deployed(answering: Answering) -> Deployed:
    return Deployed(app="a-1-x", number=1, export="/runs/one/export", run="one", **answering.to_json())


def test_what_is_not_said_is_as_before() -> None:
    assert Answering.after(deployed(WAS)) == WAS
    first = Answering.after(None)
    assert first == Answering(scale=Scale(), decoding=None, stages=None)
    assert Answering.after(deployed(first)) == first


@pytest.mark.parametrize(
    ("replicas", "scale"),
    [
        (4, Scale(least=4, gpus=0.5)),
        ({"gpus": 0.25}, Scale(least=2, most=6, gpus=0.25, ahead_s=30)),
        ({"gpus": 0, "shards": 2}, Scale(least=2, most=6, shards=2, ahead_s=30)),
        (Scale(least=3), Scale(least=3)),
    ],
)
def test_of_replicas(replicas: Any, scale: Scale) -> None:
    found = Answering.after(deployed(WAS), replicas)
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
    found = Answering.after(deployed(WAS), decoding=said)
    assert (found.scale, found.decoding, found.stages) == (WAS.scale, decoding, WAS.stages)
    assert Answering.after(None, decoding={"lanes": 2}).decoding == Decoding(lanes=2)


def test_the_engine_is_changed_with_its_arguments() -> None:
    on_vllm = Decoding(engine="vllm", engine_args=("max_model_len=64",), lanes=16)
    was = replace(WAS, decoding=on_vllm)
    back = Answering.after(deployed(was), decoding={"engine": "rtrain", "engine_args": ()})
    assert back.decoding == Decoding(lanes=16)
    there = Answering.after(deployed(back), decoding={"engine": "vllm", "engine_args": ("max_model_len=64",)})
    assert there.decoding == on_vllm
    kept = Answering.after(deployed(WAS), decoding={"engine": "vllm"}).decoding
    assert kept == Decoding(engine="vllm", guesses=3, guard=Guard()), "a guard stays whatever computes"
    host = replace(WAS, scale=Scale(gpus=1, tables="host"))
    assert Answering.after(deployed(host), {"gpus": 0, "tables": "device"}).scale == Scale()


def test_of_stages() -> None:
    found = Answering.after(deployed(WAS), stages={"timeout_ms": 50, "ranker": "/runs/ranks"})
    assert found.stages == TwoStages(retriever="/runs/finds", ranker="/runs/ranks", user="whom", timeout_ms=50)
    more = {"features": SQLite(path="/known.db"), "filters": (Without(feature="genre", values=("x",)),)}
    found = Answering.after(deployed(WAS), stages=more)
    assert Answering.after(deployed(found)).stages == found.stages == replace(WAS.stages or TwoStages(), **more)
    assert Answering.after(deployed(WAS), stages=TwoStages(ranker="/r")).stages == TwoStages(ranker="/r")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"replicas": {"gpu": 1}}, "Scale has no field 'gpu'; did you mean 'gpus'?"),
        ({"replicas": {"tables": "host", "gpus": 0}}, "Scale.tables: host, where all memory is the host's"),
        ({"replicas": 0}, "Scale.least: must be a whole number of at least 1, got 0"),
        ({"replicas": {"least": 7}}, "Scale.most: 6, less than the 7 of Scale.least"),
        ({"decoding": {"lanes": "many"}}, "lanes: expected int | none, got 'many'"),
        ({"stages": {"features": "known.db"}}, "features: expected Features, got 'known.db'"),
    ],
)
def test_what_does_not_fit(said: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Answering.after(deployed(WAS), **said)
    assert why in str(refused.value)


def test_what_is_gone_is_not_missed_where_another_is_said(tmp_path: Path) -> None:
    kept: dict[str, Any] = deployed(WAS).decoding or {}
    gone = kept | {"guard": {"$type": "nowhere_any_more:Mine"}, "draft": str(tmp_path)}
    before = replace(deployed(WAS), decoding=gone)
    with pytest.raises(ConfigError, match="--module nowhere_any_more"):
        Answering.after(before, decoding={"lanes": 2, "draft": ""})
    with pytest.raises(UserError, match="no export in"):
        Answering.after(before, decoding={"guard": None})
    free = Answering.after(before, decoding={"guard": None, "draft": ""}).decoding
    assert free == Decoding(guesses=3)


def test_another_model_beside_a_version_that_goes_on_is_everybodys_at_once() -> None:
    was = replace(WAS, stages=TwoStages(retriever="/runs/finds", ranker="/runs/one/export"))
    before, share = deployed(was), Canary()
    assert (
        was.of_all_at_once(before, share, "home") == "" == Answering.after(None).of_all_at_once(before, share, "home")
    )
    other = Answering.after(before, stages={"retriever": "/runs/finds-more", "timeout_ms": 9})
    with pytest.raises(UserError, match="'home': version 1 answers already, and would have another retriever"):
        other.of_all_at_once(before, share, "home")
    at_once = Canary(steps=(1.0,))
    assert other.of_all_at_once(before, at_once, "home") == " (retriever /runs/finds-more, was /runs/finds)"
    assert Answering.after(before, stages={"timeout_ms": 9}).of_all_at_once(before, share, "home") == ""


def test_what_was_champion_is_known_by_its_stages() -> None:
    state = State(model="home", registry="", audit="", champion=deployed(WAS))
    assert state.crown(replace(deployed(WAS), number=2, stages=None)).number == 1
    assert state.crown(replace(deployed(WAS), number=3)).number == 2
    assert State.from_json(json.loads(json.dumps(state.to_json()))).had == {"1": deployed(WAS).stages}
