"""What `serve`, `gate` and `release` say of replicas, a language model's answers, and stages: what is said alone."""

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

from rtrain.cli.decoding import DECODING, decoding_said
from rtrain.cli.scale import SCALE, scale_said
from rtrain.cli.stages import STAGES, stages_of, stages_said
from rtrain.endpoint.answering import Answering
from rtrain.endpoint.state import Deployed
from rtrain.errors import ConfigError, RtrainError, UserError
from rtrain.language.guard import Guard
from rtrain.serving.scale import Scale
from rtrain.stages.features import NoFeatures, SQLite


def options(*words: str, more: tuple[str, ...] = ()) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for one in (*SCALE, *DECODING, *STAGES):
        parser.add_argument(*one.names, **one.options)
    for name in more:
        parser.add_argument(name)
    return parser.parse_args(words, argparse.Namespace(verb="release"))


def test_nothing_is_said() -> None:
    nothing = options()
    assert (scale_said(nothing), decoding_said(nothing), stages_said(nothing), stages_of(nothing)) == ({}, {}, {}, None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--replicas 3", {"least": 3, "most": None, "ahead_s": 0.0, "season_s": 0.0}),
        ("--replicas 1-8 --ahead-s 90 --season-s 86400", {"least": 1, "most": 8, "ahead_s": 90.0, "season_s": 86400.0}),
        ("--season-s 0", {"season_s": 0.0}),
        ("--replicas 1-8", {"least": 1, "most": 8}),
        ("--replicas 2-2", {"least": 2, "most": 2}),
        ("--gpus 0.25", {"gpus": 0.25}),
        ("--gpus 0", {"gpus": 0.0}),
        ("--tables host", {"tables": "host"}),
        ("--shards 4", {"shards": 4, "copies": 1}),
        ("--shards 4x2", {"shards": 4, "copies": 2}),
        ("--shards 0", {"shards": 0, "copies": 1}),
    ],
)
def test_of_replicas(words: str, said: dict[str, Any]) -> None:
    assert scale_said(options(*words.split())) == said


def test_what_foresees_the_load_is_kept_and_taken_back() -> None:
    foreseeing = Answering.after(
        None, scale_said(options(*["--replicas", "1-8", "--ahead-s", "90", "--season-s", "86400"]))
    )
    before = Deployed(app="a-1-x", number=1, export="/runs/one/export", run="one", **foreseeing.to_json())
    more = Answering.after(before, scale_said(options("--replicas", "2-4"))).scale
    assert (more.least, more.most, more.ahead_s, more.season_s) == (2, 4, 90.0, 86400.0)
    assert Answering.after(before, scale_said(options("--replicas", "4"))).scale == Scale(least=4)
    assert Answering.after(before, 4).scale == Scale(least=4)
    assert Answering.after(before, scale_said(options("--ahead-s", "0"))).scale.ahead_s == 0
    with pytest.raises(ConfigError, match=r"Scale.ahead_s: 9, but replicas are always 3. Set most"):
        Answering.after(before, scale_said(options(*["--replicas", "3", "--ahead-s", "9"])))


@pytest.mark.parametrize("text", ["", "-", "1-", "-3", "a", "1-b", "1.5", "1-2-3"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--replicas: a number, or two as 1-8"):
        scale_said(options(f"--replicas={text}"))


@pytest.mark.parametrize("text", ["", "x", "4x", "x2", "-1", "4x2x2", "4*2"])
def test_what_is_no_number_of_shards_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--shards: a number, or with copies of each as 4x2"):
        scale_said(options(f"--shards={text}"))


QUOTED = ('a={"x":"y,z=1","w":[2]}', "b=[1,2]", "c=u,v", 'd=""')


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--lanes 2", {"lanes": 2}),
        ("--guesses 0", {"guesses": 0}),
        ("--engine-args none", {"engine_args": ()}),
        ("--engine-args a=1", {"engine_args": ("a=1",)}),
        ("--engine-args dtype=half,b-c=true", {"engine_args": ("dtype=half", "b-c=true")}),
        ('--engine-args a={"x":"y,z=1","w":[2]},b=[1,2],c=u,v,d=""', {"engine_args": QUOTED}),
        ("--engine-args a=1,2,3,b=4", {"engine_args": ("a=1,2,3", "b=4")}),
        ('--engine-args a={"x":1,b=2', {"engine_args": ('a={"x":1', "b=2")}),
        ("--draft runs/small", {"draft": "runs/small"}),
        ("--draft none", {"draft": ""}),
        ("--guard rtrain.language.guard:Guard", {"guard": Guard()}),
        ("--guard none", {"guard": None}),
    ],
)
def test_of_a_language_models_answers(words: str, said: dict[str, Any]) -> None:
    assert decoding_said(options(*words.split())) == said


@pytest.mark.parametrize(
    ("guard", "why"),
    [
        ("NoSecrets", "--guard: MODULE:CLASS, or none, got 'NoSecrets'"),
        ("rtrain.models.dlrm:DLRM", "--guard: rtrain.models.dlrm:DLRM is no class of an rtrain.Guard"),
        ("rtrain.language.guard:Gard", "is no class of an rtrain.Guard"),
        ("nowhere:Guard", "--guard: No module named 'nowhere'. Call this in the folder that has it"),
    ],
)
def test_what_is_no_guard(guard: str, why: str) -> None:
    with pytest.raises(UserError) as refused:
        decoding_said(options("--guard", guard))
    assert why in str(refused.value)


def test_a_guard_is_of_a_module_in_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "guards_here.py").write_text(
        "from dataclasses import dataclass\nimport rtrain\n\n\n@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(rtrain.Guard):\n    word: str = 'x'\n\n\n@dataclass(frozen=True, kw_only=True)\n"
        "class Needs(rtrain.Guard):\n    word: str\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", sys.path.copy())  # the command appends this folder
    guard = decoding_said(options("--guard", "guards_here:Mine"))["guard"]
    assert (type(guard).__name__, guard.word) == ("Mine", "x")
    with pytest.raises(UserError, match=r"missing 1 required.*'word'. Give it in Python: rtrain.Decoding\(guard=Needs"):
        decoding_said(options("--guard", "guards_here:Needs"))


def test_of_stages(tmp_path: Path) -> None:
    ranker = ("--ranker",)
    assert stages_said(options("--timeout-ms", "20", more=ranker)) == {"timeout_ms": 20.0}
    assert stages_said(options("--defaults", '{"hour": 12}', more=ranker)) == {"defaults": {"hour": 12}}
    for text, why in (("hour=12", "Expecting value"), ("[1]", "it is no object")):
        with pytest.raises(UserError, match=f"--defaults .*: {why}.* Give columns with values as JSON"):
            stages_said(options("--defaults", text, more=ranker))
    said = stages_of(options("--ranker", "runs/one", "--user", "whom", more=ranker))
    assert (said.ranker.endswith("/runs/one"), said.retriever, said.user, said.item) == (True, "", "whom", "item")
    for words, more, why in (
        ("--timeout-ms 20", ranker, "release: --timeout-ms is of two stages. Give --ranker too, or leave it out"),
        ("--item film", (*ranker, "--retriever"), "release: --item is of two stages. Give --retriever or --ranker"),
        ("--ranker a --retriever b", (*ranker, "--retriever"), "--retriever and --ranker are each the stage that"),
        (f"--features {tmp_path} --ranker a", ranker, "is no file of SQLite, no redis:// URL, no folder"),
        ("--candidates 0 --ranker a", ranker, "TwoStages.candidates: must be at least 1, got 0"),
    ):
        with pytest.raises(RtrainError) as refused:
            stages_of(options(*words.split(), more=more))
        assert why in str(refused.value)
    (tmp_path / "known.db").touch()
    said = stages_of(options("--ranker", "runs/one", "--features", f"{tmp_path}/known.db", more=ranker))
    assert said.features == SQLite(path=f"{tmp_path}/known.db")
    taken_back = stages_said(options("--features", "none", "--history", "none"))
    assert taken_back == {"features": NoFeatures(), "history": ""}
