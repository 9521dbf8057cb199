"""Versions of a language model behind one address, under a load of streams: released, rolled back, broken off."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import rtrain
from recipes.gpt_stdlib import debug
from rtrain.endpoint.canary import Canary
from rtrain.endpoint.endpoint import Endpoint
from rtrain.endpoint.routing import place
from rtrain.errors import CheckpointError, UserError
from rtrain.export.weights import save
from rtrain.language.decoding import Decoding
from tests.cluster.conftest import free_port, wait_for
from tests.cluster.load import KEYS, load
from tests.cluster.test_language_serving import NoSecrets, offline
from tests.unit.release.runs import PASSES

PROMPTS = ["def f(", "import os\n", "class A:\n    ", "self"]
TOKENS = 24
QUICK = Canary(steps=(0.2, 1.0), seconds=1.0, answers=30, patience_s=90, timeout_s=30, shadow=0.5)
ASKED: dict[str, Any] = {"model": "writer", "max_tokens": TOKENS, "temperature": 0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two that learned something else each, and one whose answers take long."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("writers")
    for name, steps in (("one", 120), ("two", 200)):
        changes: dict[str, Any] = {"name": name, "storage": str(folder), "optim.lr": 1e-2, "data.context": 64}
        changes |= {"tracking.to": (), "cluster.workers": 1, "optim.schedule.warmup_steps": 20, "handoff.rows": 1}
        changes |= {"duration.steps": steps, "evaluation.every.steps": steps}
        rtrain.train(rtrain.override(debug(), changes), launcher="inline", quiet=True)
    shutil.copytree(folder / "one", folder / "long")
    export = folder / "long" / "export"
    config = json.loads((export / "config.json").read_text()) | {"max_position_embeddings": 10_000}
    (export / "config.json").write_text(json.dumps(config))
    (export / "generation_config.json").write_text('{"bos_token_id": null, "eos_token_id": null}')
    head = json.loads((export / "export.json").read_text())
    for name in ("config.json", "generation_config.json"):
        head["files"][name] = sha256((export / name).read_bytes()).hexdigest()
    (export / "export.json").write_text(json.dumps(head))
    for name in ("one", "two", "long"):
        assert PASSES.judge(f"{folder}/{name}", None if name == "one" else f"{folder}/one").passed
    return folder


@pytest.fixture(scope="module")
def endpoint(serve_port: int, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("registry")
    found = Endpoint(
        name="writer", port=serve_port, registry=f"sqlite:///{folder}/registry.db", audit=f"{folder}/audit",
        state=f"{folder}/endpoints",
    )  # fmt: skip
    assert found.release(f"{runs}/one", "the first").version == 1
    yield found
    found.stop()


def streamed(http: httpx.Client, url: str, body: dict[str, Any], headers: dict[str, str]) -> tuple[httpx.Response, str]:
    """An answer with the text of its events, the last of which must be [DONE]."""
    with http.stream("POST", f"{url}/v1/completions", json=body | {"stream": True}, headers=headers) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert answer.status_code == 200 and lines[-1] == "data: [DONE]", lines
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert not any("error" in chunk for chunk in chunks), chunks
    return answer, "".join(chunk["choices"][0]["text"] for chunk in chunks)


def test_released_under_streams_and_rolled_back(endpoint: Endpoint, runs: Path) -> None:
    """Every text is that of its version, by greedy `generate`."""
    wanted = {
        (version, prompt): offline(f"{runs}/{run}/export", prompt, TOKENS)
        for version, run in (("1", "one"), ("2", "two"))
        for prompt in PROMPTS
    }
    assert len(set(wanted.values())) > len(PROMPTS)
    wrong: list[tuple[str, str]] = []

    def ask(http: httpx.Client, draw: np.random.Generator, headers: dict[str, str]) -> httpx.Response:
        prompt = PROMPTS[draw.integers(len(PROMPTS))]
        body = ASKED | {"prompt": prompt}
        if draw.integers(2):
            answer, text = streamed(http, endpoint.url, body, headers)
        else:
            answer = http.post(f"{endpoint.url}/v1/completions", json=body, headers=headers)
            text = answer.json()["choices"][0]["text"] if answer.status_code == 200 else ""
        version = answer.headers["x-rtrain-version"]
        if text != wanted.get((version, prompt)):
            wrong.append((version, prompt))
        return answer

    with load(ask) as seen:
        version = endpoint.release(f"{runs}/two", "another", QUICK)
        settled = endpoint.settled(version.version, timeout_s=120)
        assert settled is not None and settled.champion, settled
        assert endpoint.rollback("the first was better") == "version 1 (one) answers again"
        wait_for(lambda: endpoint.status()["everywhere"], "all routers heard of it")
    assert not seen.failed and not wrong, (seen.statuses, wrong[:3])
    assert sum(seen.statuses.values()) > 60 and {"1", "2"} <= set(seen.versions)
    (first,) = [d for d in endpoint.status()["decisions"] if d["what"] == "advance"][-1:]
    told = first["seen"][next(app for app in first["seen"] if app.startswith("writer-2-"))]
    assert told["failed"] == 0 and 0 < told["mean_score"] <= TOKENS + 1, told  # tokens, or events, of an answer


def test_one_that_writes_nonsense_is_taken_back(endpoint: Endpoint, runs: Path) -> None:
    """A guard, which refuses log probabilities to those who ask, hides nothing of it."""
    shutil.copytree(runs / "two", runs / "nonsense")
    export, draw = runs / "nonsense" / "export", torch.Generator().manual_seed(0)
    (path,) = export.glob("model-*.safetensors")
    kept = load_file(path)
    save({name: x.std() * torch.randn(x.shape, generator=draw) if x.ndim > 1 else x for name, x in kept.items()}, path)
    head = json.loads((export / "export.json").read_text())
    head["files"][path.name] = sha256(path.read_bytes()).hexdigest()
    (export / "export.json").write_text(json.dumps(head))
    assert PASSES.judge(f"{runs}/nonsense", f"{runs}/one").passed

    def ask(http: httpx.Client, draw: np.random.Generator, headers: dict[str, str]) -> httpx.Response:
        body = ASKED | {"prompt": PROMPTS[draw.integers(len(PROMPTS))] * 4, "max_tokens": 4}
        return http.post(f"{endpoint.url}/v1/completions", json=body, headers=headers)

    guarded = replace(endpoint, decoding={"guard": NoSecrets(word="zzzz")})
    with load(ask) as seen:
        version = guarded.release(f"{runs}/nonsense", "more text", replace(QUICK, seconds=60, shadow=0.0))
        settled = endpoint.settled(version.version, timeout_s=120)
    assert settled is not None and not settled.champion, settled
    assert settled.why.startswith("take back: a token of what is asked costs it"), settled
    assert not seen.failed, seen.statuses


@pytest.mark.slow
def test_who_asks_has_one_version(endpoint: Endpoint, runs: Path) -> None:
    """By OpenAI's `user`; and the model is called as the endpoint."""
    version = endpoint.release(f"{runs}/two", "another", Canary(steps=(0.5,), seconds=1, answers=1000, patience_s=600))
    try:
        wait_for(lambda: endpoint.status()["everywhere"], "all routers heard of it")
        for key in KEYS[:12]:
            body = ASKED | {"prompt": "x", "max_tokens": 1, "user": key}
            answer = httpx.post(f"{endpoint.url}/v1/completions", json=body, timeout=60)
            wanted = str(version.version) if place(f"writer-{version.version}:{key}") < 0.5 else "1"
            assert answer.headers["x-rtrain-version"] == wanted and answer.json()["model"] == "writer"
    finally:
        endpoint.rollback("enough seen")
    paths = httpx.get(f"{endpoint.url}/openapi.json", timeout=60).json()
    assert "/v1/completions" in paths["paths"] and endpoint.url.endswith(paths["servers"][0]["url"])
    told = httpx.get(f"{endpoint.url}/v1/models", timeout=60).json()
    assert [of["id"] for of in told["data"]] == ["writer"]
    other = httpx.post(f"{endpoint.url}/v1/completions", json=ASKED | {"prompt": "x", "model": "one"}, timeout=60)
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")
    refused = httpx.post(f"{endpoint.url}/v1/completions", json=ASKED | {"prompt": "", "stream": True}, timeout=60)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
    unread = httpx.post(f"{endpoint.url}/v1/completions", content=b"{", timeout=60)
    assert unread.status_code == 400 and "not JSON" in unread.json()["error"]["message"]


@pytest.mark.slow
def test_streams_that_are_left_or_broken_off(endpoint: Endpoint, runs: Path) -> None:
    """One that is left ends its sequence; one whose replica dies says so; both through the router."""
    settled = endpoint.release(f"{runs}/long", "a longer context", Canary(steps=(1.0,), seconds=0, answers=0))
    found = endpoint.settled(settled.version, timeout_s=60)
    assert found is not None and found.champion
    wait_for(lambda: endpoint.status()["everywhere"], "all routers heard of it")
    body = ASKED | {"prompt": "def f(", "max_tokens": 4000, "temperature": 2, "seed": 1, "stream": True}

    def answers() -> bool:
        return httpx.post(f"{endpoint.url}/v1/completions", json=ASKED | {"prompt": "x"}, timeout=60).status_code == 200

    def replicas() -> list[str]:
        found: list[str] = endpoint.status()["versions"][0]["replicas"]
        return found

    def computed() -> int:
        told = httpx.get(f"{endpoint.url}/healthz", timeout=60).json()
        return int(told["computed"]) + int(told["waiting"])

    with httpx.Client(timeout=60) as http:
        with http.stream("POST", f"{endpoint.url}/v1/completions", json=body) as answer:
            coming = answer.iter_lines()  # kept, for httpx closes what nobody reads any more
            assert next(coming).startswith("data: ")
            assert computed() == 1
        wait_for(lambda: computed() == 0, "the end of a sequence that nobody reads", timeout_s=20)
        assert answers()
        wait_for(replicas, "the router told which replica answered")
        lines: list[str] = []
        with http.stream("POST", f"{endpoint.url}/v1/completions", json=body) as answer, suppress(httpx.HTTPError):
            for line in answer.iter_lines():
                if not lines:
                    (replica,) = replicas()
                    os.kill(int(replica.rpartition(":")[2]), signal.SIGKILL)
                lines += [line] if line else []
    assert len(lines) < 4000 and lines[-1] != "data: [DONE]"
    error = json.loads(lines[-1].removeprefix("data: "))["error"]
    assert error["type"] == "server_error" and "the version that wrote this is gone" in error["message"]

    wait_for(answers, "an answer of the replica that Serve starts in its place", timeout_s=60)
    assert endpoint.rollback("enough seen").endswith("answers again")


def test_guards_and_guesses_go_on_with_the_next_version(endpoint: Endpoint, runs: Path, tmp_path: Path) -> None:
    guarded = replace(
        endpoint, name="guarded", decoding=Decoding(guesses=3, lanes=2, guard=NoSecrets(word="password")),
        state=f"{tmp_path}/endpoints",
    )  # fmt: skip
    guarded.release(f"{runs}/one", "the first")
    later = replace(guarded, decoding={"lanes": 3})  # as another command says it, of lanes alone
    body = ASKED | {"model": "guarded", "prompt": "def f(", "max_tokens": 30}

    def ask(**more: Any) -> httpx.Response:
        return httpx.post(f"{guarded.url}/v1/completions", json=body | more, timeout=60)

    def text_of(version: str) -> str:
        """Of an answer of its own: for half a second the other router may ask the one before."""
        answers: list[httpx.Response] = []

        def answers_it() -> bool:
            answers.append(ask())
            return answers[-1].headers["x-rtrain-version"] == version

        wait_for(answers_it, f"version {version} answers")
        return str(answers[-1].json()["choices"][0]["text"])

    def held(version: str) -> None:
        assert text_of(version) == "[withheld]"
        refused = ask(prompt="a password").json()["error"]
        assert refused["code"] == "content_filter" and "'password' is not talked about" in refused["message"]
        assert httpx.get(f"{guarded.url}/healthz", timeout=60).json()["guessed"] > 0

    held("1")
    later.release(f"{runs}/two", "another", replace(QUICK, steps=(1.0,)))
    later.hold(1.0, "at once")
    held("2")
    wait_for(lambda: not later.status()["to_do"], "it is the champion in the registry too")
    replace(guarded, decoding=None).rollback("the first was better")
    held("1")
    kept = json.loads((tmp_path / "endpoints/guarded/endpoint.json").read_text())["champion"]["decoding"]
    assert (kept["lanes"], kept["guesses"], kept["guard"]["word"]) == (3, 3, "password")
    free = replace(guarded, decoding={"guard": None})
    free.release(f"{runs}/two", "nobody looks any more", replace(QUICK, steps=(1.0,)))
    free.hold(1.0, "at once")
    assert text_of("2") != "[withheld]"
    assert httpx.get(f"{guarded.url}/healthz", timeout=60).json()["guessed"] > 0
    guarded.stop()


def test_what_cannot_be_released(endpoint: Endpoint, runs: Path, tmp_path: Path) -> None:
    over_rpc = Endpoint(
        name="other", port=endpoint.port, registry=endpoint.registry, audit=endpoint.audit, state=endpoint.state,
        grpc_port=free_port(),
    )  # fmt: skip
    with pytest.raises(UserError, match="a language model answers by HTTP alone. Leave out grpc_port"):
        over_rpc.release(f"{runs}/one", "over gRPC")
    shutil.copytree(runs / "two", tmp_path / "altered")
    champion = next(of["export"] for of in endpoint.status()["versions"])
    PASSES.judge(f"{tmp_path}/altered", champion)
    (tmp_path / "altered" / "export" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="config.json is missing or was altered"):
        endpoint.release(f"{tmp_path}/altered", "altered")
    body = ASKED | {"prompt": "x", "max_tokens": 1}
    assert httpx.post(f"{endpoint.url}/v1/completions", json=body, timeout=60).status_code == 200
