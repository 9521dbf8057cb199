"""A language export on Ray Serve, asked as OpenAI's clients ask: streams, refusals, a client that leaves."""

import json
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve

import rtrain
from recipes.gpt_stdlib import debug
from rtrain import config
from rtrain.errors import CheckpointError, ConfigError, DataError
from rtrain.handoff.served import SAME, apart
from rtrain.language.guard import Guard
from rtrain.serving.app import application_of
from rtrain.serving.language import language_application
from rtrain.serving.scale import Scale
from rtrain.storage import Folder
from tests.cluster.conftest import wait_for

PROMPTS = ["def f(", "import os\n", "class A:\n    ", "self", "return", "#", "    if x", "'''Words"]
JSON = {"content-type": "application/json"}
MODEL = "gpt-stdlib-debug"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("transformers")
    changes = {"storage": str(tmp_path_factory.mktemp("language")), "tracking.to": (), "cluster.workers": 1}
    changes |= {"data.context": 512, "global_batch": 2, "optim.schedule.warmup_steps": 2}
    result = rtrain.train(rtrain.override(debug(), changes), launcher="inline", quiet=True)
    assert result is not None
    return str(result.export)


@pytest.fixture(scope="module")
def served(serve_port: int, exported: str) -> Iterator[Any]:
    serving = rtrain.serve(exported.removesuffix("/export"), port=serve_port)  # a run's folder, as on a command line
    yield serving
    serving.stop()


def offline(exported: str, prompt: str, tokens: int) -> str:
    import torch

    from rtrain.language.model import load

    language = load(exported, device="cpu")
    ids = torch.tensor([language.ids(prompt)])
    made = language.model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, pad_token_id=0
    )[0, ids.shape[1] :].tolist()
    return language.text([token for token in made if token not in language.ends])


def events(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream, whose last one must be [DONE]."""
    with httpx.stream("POST", f"{url}/v1/completions", json=body | {"stream": True}, timeout=120) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_eight_streams_at_once_give_what_generate_gives(served: Any, exported: str) -> None:
    wanted = [offline(exported, prompt, 60) for prompt in PROMPTS]
    body = {"model": MODEL, "max_tokens": 60, "temperature": 0, "stream_options": {"include_usage": True}}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda prompt: events(served.url, body | {"prompt": prompt}), PROMPTS, timeout=120))
    for prompt, text, chunks in zip(PROMPTS, wanted, found, strict=True):
        *pieces, last = chunks
        assert "".join(piece["choices"][0]["text"] for piece in pieces) == text
        assert [piece["choices"][0]["finish_reason"] for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1]["choices"][0]["finish_reason"] in ("length", "stop")
        assert {piece["object"] for piece in chunks} == {"text_completion"} and len({c["id"] for c in chunks}) == 1
        counts = last["usage"]
        assert (last["choices"], counts["prompt_tokens"]) == ([], len(prompt))
        assert counts["total_tokens"] == counts["prompt_tokens"] + counts["completion_tokens"]


def test_one_answer_in_whole(served: Any, exported: str) -> None:
    body = {"model": MODEL, "prompt": "def f(", "max_tokens": 12, "temperature": 0, "logprobs": 2}
    answer = httpx.post(f"{served.url}/v1/completions", json=body, timeout=60).json()
    (choice,) = answer["choices"]
    assert choice["text"] == offline(exported, "def f(", 12)
    assert answer["usage"] == {"prompt_tokens": 6, "completion_tokens": 12, "total_tokens": 18}
    assert len(choice["logprobs"]["tokens"]) == len(choice["logprobs"]["token_logprobs"]) == 12
    # Greedy: each token is the likeliest of its place.
    assert [max(row.values()) for row in choice["logprobs"]["top_logprobs"]] == choice["logprobs"]["token_logprobs"]
    nulls = dict.fromkeys(("n", "stream", "stop", "top_p", "seed", "echo", "suffix", "user", "stream_options"))
    assert httpx.post(f"{served.url}/v1/completions", json=body | nulls, timeout=60).json()["choices"] == [choice]
    ids = body | {"prompt": list(b"def f(")}
    assert httpx.post(f"{served.url}/v1/completions", json=ids, timeout=60).json()["choices"] == [choice]
    assert httpx.get(f"{served.url}/v1/models").json()["data"][0]["id"] == MODEL
    assert httpx.get(f"{served.url}/v1/models/{MODEL}").json()["object"] == "model"
    assert httpx.get(f"{served.url}/healthz").json()["status"] == "ok"


def test_penalties_and_biases_of_a_request(served: Any, exported: str) -> None:
    from rtrain.language.engine import Engine
    from rtrain.language.model import load
    from rtrain.language.sampling import Sampling

    engine = Engine(load(exported, device="cpu"))
    asked = {"max_tokens": 30, "temperature": 0, "frequency_penalty": 1.2, "presence_penalty": -0.5}
    wanted = engine.answer("def f(", Sampling(**asked, logit_bias=((32, -100.0), (40, 2.5))))
    plain = engine.answer("def f(", Sampling(max_tokens=30, temperature=0))
    engine.close()
    body = {"model": MODEL, "prompt": "def f("} | asked | {"logit_bias": {"32": -100, "40": 2.5}}
    answer = httpx.post(f"{served.url}/v1/completions", json=body, timeout=60).json()
    assert answer["choices"][0]["text"] == wanted.text != plain.text
    nothing = {"max_tokens": 30, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}}
    answer = httpx.post(f"{served.url}/v1/completions", json=body | nothing, timeout=60).json()
    assert answer["choices"][0]["text"] == plain.text
    for wrong, status, param in (
        ({"frequency_penalty": 3}, 422, "frequency_penalty"),
        ({"presence_penalty": "1"}, 422, "presence_penalty"),
        ({"logit_bias": {"256": 1}}, 400, "logit_bias"),
        ({"logit_bias": {"a": 1}}, 422, "logit_bias.a"),
        ({"logit_bias": {"1": 101}}, 422, "logit_bias"),
        ({"logit_bias": [1]}, 422, "logit_bias"),
    ):
        answer = httpx.post(f"{served.url}/v1/completions", json=body | wrong, timeout=60)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


def test_what_tokens_cost_is_what_the_trainer_said(served: Any, exported: str) -> None:
    run = Folder(exported.removesuffix("/export"))
    recorded = run.read_json("predictions.json")
    shards = config.from_dict(run.read_json("run.json")).data.open().shards
    rows = [shards.sample(number).tolist() for number in recorded["rows"]]
    assert len(rows) > 1 and len(rows[0]) == 513  # one token more than the context: the last is never computed
    assert apart([served.loss(row) for row in rows], recorded["predictions"]) <= SAME
    with pytest.raises(DataError, match="514 tokens"):
        served.loss([*rows[0], 1])
    assert served.loss(rows[0][:1]) == 0
    # As lm-evaluation-harness asks: the prompt, scored, and one token more.
    body = {"model": MODEL, "prompt": "def f(", "temperature": 0, "logprobs": 1}
    asked = body | {"echo": True, "max_tokens": 3}
    whole = httpx.post(f"{served.url}/v1/completions", json=asked, timeout=60).json()
    (choice,), told = whole["choices"], whole["choices"][0]["logprobs"]
    assert choice["text"] == "def f(" + offline(exported, "def f(", 3)
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    assert len(told["tokens"]) == 9 and told["text_offset"][:7] == [*range(7)]
    assert -sum(told["token_logprobs"][1:6]) == pytest.approx(served.loss(list(b"def f(")), rel=1e-6)
    assert whole["usage"] == {"prompt_tokens": 6, "completion_tokens": 3, "total_tokens": 9}
    streamed = events(served.url, asked)
    assert "".join(piece["choices"][0]["text"] for piece in streamed) == choice["text"]


def test_several_prompts_are_answered_as_each_is(served: Any, exported: str) -> None:
    """Texts and tokens, scored too, as lm-evaluation-harness sends them."""

    def ask(**body: Any) -> dict[str, Any]:
        answer = httpx.post(f"{served.url}/v1/completions", json={"model": MODEL, **body}, timeout=60)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    greedy: dict[str, Any] = {"max_tokens": 5, "temperature": 0}
    for prompts in (PROMPTS * 2, [list(prompt.encode()) for prompt in PROMPTS]):
        several = ask(prompt=prompts, **greedy)
        assert [of["text"] for of in several["choices"]] == [offline(exported, of, 5) for of in PROMPTS] * (
            len(prompts) // len(PROMPTS)
        )
        assert [of["index"] for of in several["choices"]] == [*range(len(prompts))]
    scored: dict[str, Any] = {"echo": True, "max_tokens": 1, "logprobs": 1, "temperature": 0, "seed": 1234}
    both, each = ask(prompt=[[1, 2, 3], [4, 5]], **scored), [ask(prompt=of, **scored) for of in ([1, 2, 3], [4, 5])]
    for found, alone in zip(both["choices"], each, strict=True):
        (wanted,) = alone["choices"]
        assert found["text"] == wanted["text"] and found["logprobs"]["tokens"] == wanted["logprobs"]["tokens"]
        theirs = wanted["logprobs"]["token_logprobs"][1:]
        assert found["logprobs"]["token_logprobs"][1:] == pytest.approx(theirs, abs=1e-5), "rounding of a batch"
    assert both["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def test_several_answers_to_each_of_several_prompts(served: Any) -> None:
    """Each is that of a request of its own with the seed that it has, in whole and as a stream."""
    drawn: dict[str, Any] = {"model": MODEL, "max_tokens": 12, "temperature": 1.0}

    def ask(**body: Any) -> dict[str, Any]:
        answer = httpx.post(f"{served.url}/v1/completions", json=drawn | body, timeout=60)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    prompts = ["def f(", "import ", "for x"]
    alone = [ask(prompt=prompt, seed=seed) for prompt in prompts for seed in (7, 8, 9, 10)]
    wanted = [of["choices"][0]["text"] for of in alone]
    assert len(set(wanted[:4])) == 4, "what is drawn by one seed is not what another draws"
    counts = {"prompt_tokens": sum(map(len, prompts)), "completion_tokens": 12 * 12}
    counts |= {"total_tokens": sum(counts.values())}
    whole = ask(prompt=prompts, n=4, seed=7)
    assert [(of["index"], of["text"]) for of in whole["choices"]] == list(enumerate(wanted))
    assert whole["usage"] == counts
    *chunks, last = events(
        served.url, drawn | {"prompt": prompts, "n": 4, "seed": 7, "stream_options": {"include_usage": True}}
    )
    texts, ends, order = [""] * 12, dict[int, str](), list[int]()
    for chunk in chunks:
        (choice,) = chunk["choices"]
        order.append(choice["index"])
        assert choice["index"] not in ends, "nothing comes after its end"
        texts[choice["index"]] += choice["text"]
        if choice["finish_reason"]:
            ends[choice["index"]] = choice["finish_reason"]
    assert texts == wanted and ends == dict.fromkeys(range(12), "length")
    assert order != sorted(order), "they come side by side, and not one after the other"
    assert (last["choices"], last["usage"]) == ([], counts)


@pytest.mark.parametrize("scale", [Scale(shards=2), Scale(gpus=0.5, tables="host")])
def test_tables_apart_are_refused(exported: str, scale: Scale) -> None:
    with pytest.raises(ConfigError, match="Scale.tables, shards: a language model's lie with the rest of it"):
        application_of(exported, scale=scale)


def test_an_altered_export_is_refused(exported: str, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "altered")
    (tmp_path / "altered" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="config.json is missing or was altered"):
        language_application(str(tmp_path / "altered"))


@pytest.mark.parametrize(
    ("path", "change", "status", "param", "code"),
    [
        ("completions", {"model": "gpt-5"}, 404, "model", "model_not_found"),
        ("completions", {"max_tokens": 0}, 422, "max_tokens", None),
        ("completions", {"max_tokens": "4"}, 422, "max_tokens", None),
        ("completions", {"temperature": 9}, 422, "temperature", None),
        ("completions", {"best_of": 2}, 422, "best_of", None),
        ("completions", {"prompt": {"a": 1}}, 422, "prompt", None),
        ("completions", {"prompt": [5, True]}, 422, "prompt.1", None),
        ("completions", {"prompt": ""}, 400, "prompt", None),
        ("completions", {"prompt": [300]}, 400, "prompt", None),
        ("completions", {"prompt": [5, -1]}, 422, "prompt.1", None),
        ("completions", {"prompt": [1 << 70]}, 422, "prompt.0", None),
        ("completions", {"prompt": []}, 400, "prompt", None),
        ("completions", {"prompt": ["x", ""]}, 400, "prompt", None),
        ("completions", {"prompt": [[5], [6, -1]]}, 422, "prompt.1.1", None),
        ("completions", {"prompt": ["x", [5]]}, 422, "prompt.0", None),
        ("completions", {"prompt": ["x"] * 65}, 400, "prompt", None),
        ("completions", {"prompt": ["x", "y" * 513], "stream": True}, 400, "prompt", "context_length_exceeded"),
        ("completions", {"prompt": ["x"] * 33, "n": 2}, 400, "n", None),
        ("completions", {"n": 0}, 422, "n", None),
        ("completions", {"max_tokens": 512}, 400, "prompt", "context_length_exceeded"),
        ("completions", {"stream": True, "max_tokens": 512}, 400, "prompt", "context_length_exceeded"),
        ("completions", {"stream_options": {"include_usage": True}}, 400, "stream_options", None),
        ("chat/completions", {"prompt": None, "messages": [{"role": "user", "content": "x"}]}, 400, "messages",
         "no_chat_template"),
        ("chat/completions", {"prompt": None, "messages": [{"role": "me", "content": "x"}]}, 422, "messages.0.role",
         None),
    ],
)  # fmt: skip
def test_refusals_are_openais(
    served: Any, path: str, change: dict[str, Any], status: int, param: str, code: str | None
) -> None:
    body = {"model": MODEL, "prompt": "def f("} | change
    body = {key: value for key, value in body.items() if value is not None}
    answer = httpx.post(f"{served.url}/v1/{path}", json=body, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code), error
    assert error["type"] == "invalid_request_error" and error["message"].startswith(param)


def test_what_is_no_text_or_far_too_long(served: Any) -> None:
    body = json.dumps({"model": MODEL, "prompt": "\ud800"}).encode()
    answer = httpx.post(f"{served.url}/v1/completions", content=body, headers=JSON, timeout=60)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "prompt"), answer.text
    long = {"model": MODEL, "prompt": "a" * 4_000_000}  # not cut into tokens, which takes many seconds
    answer = httpx.post(f"{served.url}/v1/completions", json=long, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded") and "4000000 bytes" in error[
        "message"
    ]
    answer = httpx.post(
        f"{served.url}/v1/completions", content=b"x", headers={"content-type": "text/plain"}, timeout=60
    )
    told = answer.json()
    assert answer.status_code == 415 and "'text/plain'" in told["detail"] == told["error"]["message"]


def test_it_answers_as_its_openapi_says(served: Any) -> None:
    # Here, for the environment of vLLM's tests, which import this file, has none of them.
    import schemathesis
    from hypothesis import HealthCheck, given, settings
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    found = httpx.get(f"{served.url}/openapi.json", timeout=60).json()
    assert set(found["paths"]) == {"/v1/completions", "/v1/models", "/v1/models/{name}", "/healthz"}, "no chat template"
    body = found["components"]["schemas"]["Completion"]["properties"]
    assert body["model"]["enum"] == [MODEL] and body["max_tokens"]["anyOf"][0]["maximum"] == 512
    assert body["prompt"]["anyOf"][1]["items"]["exclusiveMaximum"] == 256
    for name in ("Completion", "Chat"):  # none is left without what it takes at most
        kinds = found["components"]["schemas"][name]["properties"].values()
        numbers = [one for of in kinds for one in of.get("anyOf", []) if one.get("type") in ("integer", "number")]
        assert len(numbers) >= 6 and all("maximum" in one for one in numbers)
    tried = set()
    for operation in (found.ok() for found in schemathesis.openapi.from_dict(found).get_all_operations()):

        @settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def answers(case: Any) -> None:
            # What a prompt and `max_tokens` are together, and `stream_options` without `stream`, no schema says.
            if isinstance(case.body, dict):  # 64 answers of 512 tokens say no more than one of a few
                case.body |= {key: 2 for key in ("max_tokens", "n") if isinstance(case.body.get(key), int)}
            case.call_and_validate(base_url=served.url, timeout=60, excluded_checks=[positive_data_acceptance])

        answers()
        tried.add(operation.label)
    assert tried == {"POST /v1/completions", "GET /v1/models", "GET /v1/models/{name}", "GET /healthz"}


def test_what_is_no_json(served: Any) -> None:
    answer = httpx.post(f"{served.url}/v1/completions", content=b"{", headers=JSON, timeout=60)
    assert answer.status_code == 400 and "not JSON" in answer.json()["error"]["message"]
    for body in (b'{"model": "\xff"}', b"[" * 100_000):
        answer = httpx.post(f"{served.url}/v1/completions", content=body, headers=JSON, timeout=60)
        assert answer.status_code == 400 and "it is no JSON" in answer.json()["error"]["message"], answer.text


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_sequence(
    serve_port: int, served: Any, exported: str, tmp_path: Path, stream: bool
) -> None:
    folder = tmp_path / "endless"  # no token ends it, and its context takes a minute to fill
    shutil.copytree(exported, folder)
    (folder / "export.json").unlink()  # from elsewhere: nothing says what its files were
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 100_000}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"bos_token_id": null, "eos_token_id": null}')
    serve.run(language_application(str(folder)), name="endless", route_prefix="/endless")
    url = f"http://127.0.0.1:{serve_port}/endless"

    def computed() -> int:
        return int(httpx.get(f"{url}/healthz", timeout=60).json()["computed"])

    body = {"model": "endless", "prompt": "def f(", "max_tokens": 90_000, "stream": stream}

    sent = json.dumps(body).encode()
    lines = ("POST /endless/v1/completions HTTP/1.1", "Host: x", "Content-Type: application/json")
    head = "\r\n".join([*lines, f"Content-Length: {len(sent)}"])
    try:
        with socket.create_connection(("127.0.0.1", serve_port), timeout=60) as client:
            client.sendall(f"{head}\r\n\r\n".encode() + sent)
            wait_for(lambda: computed() == 1, "the sequence")
            if stream:
                assert client.recv(4096).startswith(b"HTTP/1.1 200")
        # All of its tokens would take a minute and a half at a millisecond each.
        wait_for(lambda: computed() == 0, "the end of a sequence that nobody reads", timeout_s=30)
    finally:
        serve.delete("endless")


def test_guessed_answers_are_those_of_the_model(serve_port: int, served: Any, exported: str, tmp_path: Path) -> None:
    draft = tmp_path / "draft"
    shutil.copytree(exported, draft)
    app = language_application(exported, draft=str(draft), guesses=3)
    serve.run(app, name="guessing", route_prefix="/guessing")
    url = f"http://127.0.0.1:{serve_port}/guessing"
    try:
        body = {"model": MODEL, "max_tokens": 60, "temperature": 0, "logprobs": 1}

        def ask(url: str, prompt: str) -> dict[str, Any]:
            answer = httpx.post(f"{url}/v1/completions", json=body | {"prompt": prompt}, timeout=120).json()
            return {"choice": answer["choices"][0], "usage": answer["usage"]}

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda prompt: ask(url, prompt), PROMPTS, timeout=120))
            plain = list(pool.map(lambda prompt: ask(served.url, prompt), PROMPTS, timeout=120))
        for prompt, mine, other in zip(PROMPTS, found, plain, strict=True):
            assert mine["choice"]["text"] == offline(exported, prompt, 60)
            assert mine["usage"] == other["usage"]
            assert mine["choice"]["logprobs"]["tokens"] == other["choice"]["logprobs"]["tokens"]
            logprobs = [each["choice"]["logprobs"]["token_logprobs"] for each in (mine, other)]
            assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-4)
        said = httpx.get(f"{url}/healthz", timeout=60).json()
        assert 0 < said["guessed"] * 0.9 <= said["right"] <= said["guessed"]  # its draft is the model itself
    finally:
        serve.delete("guessing")


@dataclass(frozen=True, kw_only=True)
class NoSecrets(Guard):
    word: str

    def ask(self, text: str) -> str:
        if "boom" in text:
            raise RuntimeError("it fell over a word")
        return f"{self.word!r} is not talked about" if self.word in text else ""

    def answer(self, text: str) -> str:
        return "[withheld]"


def test_guard_chat_and_a_full_queue(serve_port: int, served: Any, exported: str, tmp_path: Path) -> None:
    folder = tmp_path / "talker"
    shutil.copytree(exported, folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}a:")
    app = language_application(str(folder), guard=NoSecrets(word="password"), lanes=1, waiting=1)
    serve.run(app, name="guarded", route_prefix="/guarded")
    try:
        url = f"http://127.0.0.1:{serve_port}/guarded/v1/chat/completions"
        told = httpx.get(f"http://127.0.0.1:{serve_port}/guarded/openapi.json", timeout=60).json()
        assert "/v1/chat/completions" in told["paths"], "it has a chat template"
        body = {"model": "talker", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
        answer = httpx.post(url, json=body, timeout=60).json()
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": "[withheld]"}
        assert answer["choices"][0]["finish_reason"] == "content_filter"
        assert answer["usage"]["prompt_tokens"] == len("user: hello\na:")
        with httpx.stream("POST", url, json=body | {"stream": True}, timeout=60) as stream:
            lines = [line for line in stream.iter_lines() if line]
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
        assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
            {"role": "assistant", "content": ""}, {"content": "[withheld]"},
        ]  # fmt: skip
        body["messages"][0]["content"] = "the password"  # type: ignore[index]
        refused = httpx.post(url, json=body, timeout=60)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "content_filter")

        body["messages"][0]["content"] = "boom"  # type: ignore[index]
        failed = httpx.post(url, json=body, timeout=60)
        assert (failed.status_code, failed.json()["error"]["code"]) == (500, "guard_failed")
        kinds = told["components"]["schemas"]
        assert kinds["Completion"]["properties"]["logprobs"]["anyOf"] == [{"type": "null"}]
        assert kinds["Chat"]["properties"]["logprobs"]["anyOf"][0]["enum"] == [False]

        text = {"model": "talker", "prompt": "hello", "max_tokens": 3, "echo": True}
        echoed = httpx.post(url.replace("chat/", ""), json=text, timeout=60).json()["choices"][0]
        assert (echoed["text"], echoed["finish_reason"]) == ("[withheld]", "content_filter")

        more = httpx.post(url.replace("chat/", ""), json=text | {"prompt": ["hello"] * 5}, timeout=60)
        assert more.status_code == 200 and len(more.json()["choices"]) == 5, (
            "they wait for each other, not in the queue"
        )

        body["messages"][0]["content"] = "long"  # type: ignore[index]
        longer = body | {"max_tokens": 480, "temperature": 0}
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda _: httpx.post(url, json=longer, timeout=120), range(12), timeout=200))
        assert {answer.status_code for answer in answers} == {200, 429}
        busy = next(answer for answer in answers if answer.status_code == 429)
        assert busy.json()["error"]["type"] == "rate_limit_error" and busy.headers["retry-after"] == "1"
    finally:
        serve.delete("guarded")
