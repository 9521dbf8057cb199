"""A language export on vLLM: what rtrain's own engine says of it, refusals, and a version of an endpoint.

vLLM is in no environment of `make install`; `make test-vllm` makes one with its build for CPUs and runs this.
"""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

pytest.importorskip("vllm")

import rtrain
from recipes.gpt_stdlib import debug
from rtrain import config
from rtrain.endpoint.canary import Canary
from rtrain.endpoint.endpoint import Endpoint
from rtrain.errors import ConfigError
from rtrain.handoff.served import SAME, apart
from rtrain.language.decoding import Decoding
from rtrain.serving.app import application_of
from rtrain.serving.bodies import MAX_BYTES
from rtrain.serving.scale import Scale
from rtrain.storage import Folder
from tests.cluster.conftest import wait_for
from tests.cluster.load import load
from tests.cluster.test_language_release import streamed
from tests.cluster.test_language_serving import JSON, PROMPTS, NoSecrets, events, offline
from tests.unit.release.runs import PASSES

pytestmark = pytest.mark.timeout(600)
TOKENS = 40
ON_VLLM = Decoding(engine="vllm", engine_args=("enforce_eager=true",), lanes=8)
"""Not compiled: that would take minutes here."""


@dataclass(frozen=True, kw_only=True)
class Loud(NoSecrets):
    def answer(self, text: str) -> str:
        return text.upper()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two that learned something else each; vLLM computes no attention of fewer than 32 a head on a CPU."""
    folder = tmp_path_factory.mktemp("language")
    for name, steps in (("one", 60), ("two", 120)):
        changes: dict[str, Any] = {"name": name, "storage": str(folder), "optim.lr": 3e-3, "data.context": 128}
        changes |= {"tracking.to": (), "cluster.workers": 1, "optim.schedule.warmup_steps": 20, "handoff.rows": 4}
        changes |= {"duration.steps": steps, "evaluation.every.steps": steps, "global_batch": 4}
        changes |= {"model.dim": 128, "model.heads": 4, "model.kv_heads": 2}
        rtrain.train(rtrain.override(debug(), changes), launcher="inline", quiet=True)
    for name in ("one", "two"):
        assert PASSES.judge(f"{folder}/{name}", None if name == "one" else f"{folder}/one").passed
    return folder


@pytest.fixture(scope="module")
def served(serve_port: int, runs: Path) -> Iterator[Any]:
    serving = rtrain.serve(f"{runs}/two", port=serve_port, decoding=ON_VLLM)
    yield serving
    serving.stop()


def ask(served: Any, **body: Any) -> httpx.Response:
    text = json.dumps({"model": "two"} | body)  # httpx itself sends no half of a letter
    return httpx.post(f"{served.url}/v1/completions", content=text, headers=JSON, timeout=120)


def greedy(served: Any) -> list[str]:
    """Of all prompts at once, as streams."""
    body = {"model": "two", "max_tokens": TOKENS, "temperature": 0}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda prompt: events(served.url, body | {"prompt": prompt}), PROMPTS, timeout=300))
    return ["".join(chunk["choices"][0]["text"] for chunk in chunks) for chunks in found]


def test_it_answers_as_transformers(served: Any, runs: Path) -> None:
    """Greedy streams, eight at once, and what tokens cost; whose answers are the trainer's, as other tests say."""
    assert greedy(served) == [offline(f"{runs}/two/export", prompt, TOKENS) for prompt in PROMPTS]
    run = Folder(f"{runs}/two")
    recorded = run.read_json("predictions.json")
    shards = config.from_dict(run.read_json("run.json")).data.open().shards
    # A row has one token more than the context, and vLLM keeps room for one that it writes.
    rows = [shards.sample(number).tolist()[:-2] for number in recorded["rows"]]
    costs = [served.loss(row) for row in rows]
    assert len(rows) == 4 and apart(costs, [_cost(f"{runs}/two/export", row) for row in rows]) <= SAME


def test_penalties_and_biases_are_as_rtrains_own_engine_has_them(served: Any, runs: Path) -> None:
    from rtrain.language.engine import Engine
    from rtrain.language.model import load as read
    from rtrain.language.sampling import Sampling

    engine = Engine(read(f"{runs}/two/export", device="cpu"))
    moved = {"frequency_penalty": 0.8, "presence_penalty": 0.4}
    for asked, bias in ((moved, {}), ({"presence_penalty": -1.0}, {"101": 3.0, "32": -100.0})):
        sampling = Sampling(
            max_tokens=TOKENS, temperature=0, **asked, logit_bias=tuple((int(of), by) for of, by in bias.items())
        )
        for prompt in PROMPTS:
            answer = ask(served, prompt=prompt, max_tokens=TOKENS, temperature=0, logit_bias=bias, **asked)
            assert answer.json()["choices"][0]["text"] == engine.answer(prompt, sampling).text, (prompt, asked)
    engine.close()


def test_its_openapi_is_of_vllms_requests_and_this_model(served: Any) -> None:
    said = httpx.get(f"{served.url}/openapi.json", timeout=60)
    found = said.json()
    assert {"/v1/completions", "/v1/chat/completions"} <= found["paths"].keys()
    schemas = found["components"]["schemas"]
    for name in ("CompletionRequest", "ChatCompletionRequest"):
        body = schemas[name]
        assert body["properties"]["model"]["enum"] == ["two"] and "model" in body["required"]
        assert {"top_k", "min_p", "max_tokens"} <= body["properties"].keys(), "what rtrain's own engine does not take"
    assert set(re.findall(r"#/components/schemas/(\w+)", said.text)) <= schemas.keys()


def _cost(export: str, row: list[int]) -> float:
    import torch

    from rtrain.language.model import load as read

    model = read(export, device="cpu").model
    with torch.inference_mode():
        logits = model(torch.tensor([row])).logits[0, :-1].double()
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:]), reduction="sum"))


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"prompt": "a", "model": "other"}, 404, "model"),
        ({"prompt": [999]}, 400, "prompt"),
        ({"prompt": [256]}, 400, "prompt"),  # the first that is none ends vLLM 0.29
        ({"prompt": ["a"] * 65}, 400, "prompt"),
        ({"prompt": "a", "n": 65}, 400, "n"),
        ({"prompt": "a", "stop": "\ud800"}, 422, "the body"),
        ({"prompt": "a", "logprobs": 999}, 400, "logprobs"),
        ({"prompt": "a", "max_tokens": 5000}, 400, "max_tokens"),
        ({"prompt": "a" * 5000}, 400, "prompt"),
        ({}, 400, "prompt"),
        ({"prompt": "a", "max_tokens": "many"}, 422, "max_tokens"),
        ({"prompt": "a", "temperature": -1}, 400, "temperature"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(served: Any, body: dict[str, Any], status: int, param: str | None) -> None:
    answer = ask(served, **body)
    assert answer.status_code == status, answer.text
    told = answer.json()["error"]
    assert told["param"] == param and "\n" not in told["message"] and "Request ID" not in told["message"], told
    assert ask(served, prompt="a", max_tokens=1).status_code == 200


def test_paths(served: Any) -> None:
    assert httpx.get(f"{served.url}/healthz", timeout=60).json() == {"status": "ok", "model": "two", "engine": "vllm"}
    assert served.model == "two"
    assert httpx.get(f"{served.url}/v1/models/other", timeout=60).status_code == 404
    chat = {"model": "two", "messages": [{"role": "user", "content": "hi"}]}
    told = httpx.post(f"{served.url}/v1/chat/completions", json=chat, timeout=60)
    assert (told.status_code, told.json()["error"]["code"]) == (400, "no_chat_template"), told.text
    long = ask(served, prompt="a" * 300)
    assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded"), long.text
    slow = httpx.post(f"{served.url}/v1/completions", content=b"x", headers={"content-type": "text/plain"}, timeout=60)
    assert slow.status_code == 415
    large = httpx.post(f"{served.url}/v1/completions", content=b" " * (MAX_BYTES + 1), timeout=60)
    assert large.status_code == 413


@pytest.mark.slow
@pytest.mark.parametrize("of", ["VLLM::EngineCore", "ray::ServeReplica:rtrain:LLMServer"])
def test_an_engine_that_is_killed_starts_anew(served: Any, of: str) -> None:
    """Itself, and Ray's process before it; a stream that it broke off says so, and so do others until it is back."""
    (engine,) = [one for one in psutil.process_iter(["cmdline"]) if " ".join(one.info["cmdline"]).startswith(of)]
    body = {"model": "two", "prompt": "a", "max_tokens": 120, "temperature": 0, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=120) as answer:
        lines = answer.iter_lines()
        next(lines)  # it has begun
        engine.kill()
        *_, last = [json.loads(line[6:]) for line in lines if line and line != "data: [DONE]"]
    assert last["error"]["type"] == "server_error", last
    assert "It starts anew by itself: ask again" in last["error"]["message"], last
    seen: list[httpx.Response] = []

    def answers() -> bool:
        seen.append(ask(served, prompt="a", max_tokens=1))
        return seen[-1].status_code == 200

    if of.startswith("VLLM"):  # without a process of Ray's to ask, questions wait for one; here they are refused
        wait_for(lambda: not answers(), "the engine is gone", timeout_s=20)
    wait_for(answers, "it started anew", timeout_s=200)
    between = [answer for answer in seen if answer.status_code != 200]
    # 504: of a question that waited for it the whole minute that it has; a start may take longer on a busy machine.
    assert {answer.status_code for answer in between} <= {503, 504}, [answer.text for answer in between]
    assert all(answer.headers["retry-after"] == "1" and answer.json()["error"]["message"] for answer in between)


@pytest.mark.slow
def test_beyond_what_waits_it_says_so(served: Any) -> None:
    """As many as are computed and wait (8 and 64), and 16 before the engine: the others of 130 at once are a 429."""
    body = {"prompt": "a", "max_tokens": 60, "ignore_eos": True}
    with ThreadPoolExecutor(130) as pool:
        answers = list(pool.map(lambda _: ask(served, **body), range(130), timeout=300))
    busy = [answer for answer in answers if answer.status_code != 200]
    assert 0 < len(busy) <= 130 - 72, [answer.status_code for answer in answers]
    assert {answer.status_code for answer in busy} == {429}
    assert all((a.headers["retry-after"], a.json()["error"]["code"]) == ("1", "busy") for a in busy)


def test_what_cannot_be(runs: Path) -> None:
    export = f"{runs}/two/export"
    for decoding, scale, why in (
        (Decoding(engine="vllm", engine_args=("no_such=1",)), Scale(), "no_such"),
        (Decoding(engine="vllm", engine_args=("max_num_seqs=4",)), Scale(), "say it as lanes"),
        (Decoding(engine="vllm"), Scale(gpus=1, tables="host"), "Scale.tables"),
    ):
        with pytest.raises(ConfigError, match=why):
            application_of(export, scale=scale, decoding=decoding)


@pytest.mark.slow
def test_guesses_and_a_guard(served: Any, serve_port: int, runs: Path) -> None:
    """Guesses change no greedy text, and a guard sees all that is said, streamed or not."""
    of = replace(ON_VLLM, guesses=3, guard=Loud(word="password"))
    guessing = rtrain.serve(f"{runs}/two", port=serve_port, decoding=of)  # takes the other's place
    try:
        texts = [offline(f"{runs}/two/export", prompt, TOKENS) for prompt in PROMPTS]
        assert greedy(guessing) == [text.upper() for text in texts]
        for streams in (False, True):
            refused = ask(guessing, prompt="the password", stream=streams)
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "content_filter")
        assert ask(guessing, prompt="a", logprobs=1).status_code == 400
        assert ask(guessing, prompt=[97]).status_code == 400
        several = ask(guessing, prompt=PROMPTS[:2], max_tokens=TOKENS, temperature=0).json()
        assert [choice["text"] for choice in several["choices"]] == [text.upper() for text in texts[:2]]
        assert several["usage"]["completion_tokens"] == 2 * TOKENS
    finally:
        guessing.stop()


def test_a_version_on_vllm(served: Any, serve_port: int, runs: Path, tmp_path: Path) -> None:
    """Behind the same address as one on rtrain's engine, under streams; what texts cost to both is compared."""
    served.stop()
    endpoint = Endpoint(
        name="writer", port=serve_port, registry=f"sqlite:///{tmp_path}/registry.db", audit=f"{tmp_path}/audit",
        state=f"{tmp_path}/endpoints",
    )  # fmt: skip
    wanted = {
        (v, p): offline(f"{runs}/{run}/export", p, 12) for v, run in (("1", "one"), ("2", "two")) for p in PROMPTS
    }
    wrong: list[Any] = []

    def asked(http: httpx.Client, draw: np.random.Generator, headers: dict[str, str]) -> httpx.Response:
        prompt = PROMPTS[draw.integers(len(PROMPTS))]
        body = {"model": "writer", "prompt": prompt, "max_tokens": 12, "temperature": 0}
        answer, text = streamed(http, endpoint.url, body, headers)
        if text != wanted[answer.headers["x-rtrain-version"], prompt]:
            wrong.append((answer.headers["x-rtrain-version"], prompt, text))
        return answer

    try:
        assert endpoint.release(f"{runs}/one", "the first").version == 1
        vllm = replace(endpoint, decoding={"engine": "vllm", "engine_args": ON_VLLM.engine_args})
        steps = Canary(steps=(0.3, 1.0), seconds=6, answers=30, patience_s=200, timeout_s=60)
        with load(asked) as seen:
            version = vllm.release(f"{runs}/two", "on vLLM", steps)
            settled = endpoint.settled(version.version, timeout_s=300)
            assert settled is not None and settled.champion, settled
            told = [d for d in endpoint.status()["decisions"] if d["what"] == "advance"]
            costed = [of["nats_more"] for d in told for app, of in d["seen"].items() if app.startswith("writer-2-")]
            assert "engine" in httpx.get(f"{endpoint.url}/healthz", timeout=60).json()
            back = replace(endpoint, decoding={"engine": "rtrain", "engine_args": ()})
            assert back.rollback("to see that it goes") == "version 1 (one) answers again"
            wait_for(lambda: endpoint.status()["everywhere"], "all routers heard of it")
        assert "engine" not in httpx.get(f"{endpoint.url}/healthz", timeout=60).json()
        assert not seen.failed and not wrong and {"1", "2"} <= set(seen.versions), (seen.statuses, wrong[:3])
        assert any(more is not None and abs(more) < 2 for more in costed), told
    finally:
        endpoint.stop()
