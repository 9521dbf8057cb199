"""The engine against plain transformers: same tokens, same log probabilities, whatever runs beside."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rtrain.errors import CheckpointError, ConfigError, DataError, RtrainError
from rtrain.language.engine import Busy, Engine, TooLong
from rtrain.language.lanes import Together
from rtrain.language.model import Language, is_language, load
from rtrain.language.pieces import Answer, Piece
from rtrain.language.sampling import Sampling
from rtrain.serving.language import LanguageServer
from rtrain.serving.renewed import Renewed

PROMPTS = ["def f(", "import os\n", "class A:\n    ", "é", "return", "#", "    if x", "'''Words of a docstring"]
GREEDY = Sampling(max_tokens=40, temperature=0)


def generated(engine: Engine, prompt: str, tokens: int) -> tuple[int, ...]:
    """What transformers itself makes of it."""
    ids = torch.tensor([engine.language.ids(prompt)])
    mask = torch.ones_like(ids)
    out = engine.language.model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=tokens, pad_token_id=0
    )
    return tuple(out[0, ids.shape[1] :].tolist())


def together(engine: Engine, asked: list[tuple[str, Sampling]]) -> list[Answer]:
    """All at once, each from a thread of its own."""
    start = threading.Barrier(len(asked))

    def one(prompt: str, sampling: Sampling) -> Answer:
        start.wait(timeout=30)
        return engine.answer(prompt, sampling, timeout_s=60)

    with ThreadPoolExecutor(len(asked)) as pool:
        return [f.result(timeout=60) for f in [pool.submit(one, *each) for each in asked]]


def random(language: Language, seed: int = 0) -> Language:
    """The same model with weights whose logits are close and change."""
    torch.manual_seed(seed)
    for weight in language.model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return language


def nearest(language: Language, prompt: str, ids: tuple[int, ...]) -> float:
    """The least by which a greedy answer's token was likelier than any other."""
    text = language.ids(prompt)
    with torch.no_grad():
        logits = language.model(torch.tensor([text + list(ids)])).logits[0, len(text) - 1 : -1]
    best = logits.topk(2).values
    return float((best[:, 0] - best[:, 1]).min())


WAYS: dict[str, dict[str, Any]] = {
    "together": {},
    "alone": {"together": False},
    "lookup": {"guesses": 4},
    "draft": {"guesses": 3, "draft": 1},
    "itself as draft": {"guesses": 4, "draft": 0},
}
"""A draft: the seed of its weights; 0 is the model's own."""


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("noise", [False, True], ids=["trained", "of close and changing logits"])
def test_eight_at_once_are_greedy_as_generate_is(exported: str, noise: bool, way: str) -> None:
    language = random(load(exported, device="cpu")) if noise else load(exported, device="cpu")
    options = dict(WAYS[way])
    if options.get("draft") is not None:
        options["draft"] = random(load(exported, device="cpu"), options["draft"]) if noise else language
    engine = Engine(language, lanes=8, **options)
    wanted = [generated(engine, prompt, 40) for prompt in PROMPTS]
    assert len(set(wanted)) > 4
    # The last bits of a logit hang on the shape of a pass: what is compared must not hang on them.
    assert min(nearest(language, *each) for each in zip(PROMPTS, wanted, strict=True)) > 1e-4
    answers = together(engine, [(prompt, GREEDY) for prompt in PROMPTS])
    assert [answer.ids for answer in answers] == wanted
    for answer in answers:
        kept = [i for i in answer.ids if i not in engine.language.ends]
        assert answer.text == engine.language.text(kept)
        assert answer.finish == ("length" if len(kept) == 40 else "stop")
    assert bool(engine.guessed) == ("guesses" in options) and engine.right <= engine.guessed
    if way == "itself as draft" or (way == "lookup" and not noise):
        assert engine.right > engine.guessed / 4
    if way == "draft" and noise:
        assert engine.right < engine.guessed / 2  # so that wrong guesses are taken back
    engine.close()


@pytest.mark.parametrize("way", ["together", "lookup", "draft"])
def test_who_joins_and_leaves_between_tokens_changes_no_other(exported: str, way: str) -> None:
    language = random(load(exported, device="cpu"))
    options = dict(WAYS[way])
    if "draft" in options:
        options["draft"] = random(load(exported, device="cpu"), options["draft"])
    engine = Engine(language, lanes=3, **options)  # twelve answers of 5 to 38 tokens through three rows
    asked = [(prompt, 5 + 3 * n) for n, prompt in enumerate([*PROMPTS, *PROMPTS[:4]])]
    wanted = [generated(engine, *each) for each in asked]
    found = together(engine, [(prompt, Sampling(max_tokens=n, temperature=0, logprobs=0)) for prompt, n in asked])
    assert [answer.ids for answer in found] == wanted
    for answer in found:
        assert [token.id for token in answer.tokens] == [i for i in answer.ids if i not in language.ends]
    engine.close()


def test_a_text_may_fill_the_context_to_its_end(exported: str) -> None:
    language = random(load(exported, device="cpu"))
    engine = Engine(language, lanes=2, guesses=4, draft=random(load(exported, device="cpu"), 1))
    most = Sampling(max_tokens=language.context - 6, temperature=0)
    assert engine.answer("def f(", most).ids == generated(engine, "def f(", most.max_tokens)
    engine.close()


def test_logits_of_a_row_are_those_of_the_sequence_alone(exported: str) -> None:
    language = random(load(exported, device="cpu"))
    lanes = Together(language.model, language.context, 3, guesses=2)
    texts = [list(range(40, 45)), list(range(90, 110)), list(range(60, 72))]
    with torch.inference_mode():
        for key, text in enumerate(texts):
            lanes.join(key, text)
        lanes.leave(0)  # the last row takes its place
        lanes.forward({1: [1, 2, 3], 2: [4]})
        lanes.cut(1, 21)  # of the three one is kept
        found = lanes.forward({1: [5], 2: [6, 7]})
        for key, text in {1: [*texts[1], 1, 5], 2: [*texts[2], 4, 6, 7]}.items():
            whole = language.model(torch.tensor([text])).logits[0]
            assert torch.allclose(found[key], whole[-len(found[key]) :], atol=1e-4, rtol=0)  # logits of up to 30


def test_a_model_of_windows_is_computed_one_by_one(exported: str) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=256, num_key_value_heads=2, sliding_window=8, **sizes)
    language = random(replace(load(exported, device="cpu"), model=MistralForCausalLM(config).eval()))
    engine = Engine(language, lanes=8)
    wanted = [generated(engine, prompt, 20) for prompt in PROMPTS]
    found = together(engine, [(prompt, Sampling(max_tokens=20, temperature=0)) for prompt in PROMPTS])
    assert [answer.ids for answer in found] == wanted
    engine.close()
    with pytest.raises(ConfigError, match="guesses: each answer is computed by itself.*DynamicSlidingWindowLayer"):
        Engine(language, guesses=4)
    for wrong, said in (({"lanes": 0}, "lanes: must be at least 1, got 0"), ({"guesses": "4"}, "guesses: .*got '4'")):
        with pytest.raises(ConfigError, match=said):
            Engine(language, **wrong)
    with pytest.raises(ConfigError, match="draft: it cannot guess for several"):
        Engine(load(exported, device="cpu"), guesses=4, draft=language)


def test_guesses_that_cannot_be(exported: str) -> None:
    language = load(exported, device="cpu")
    with pytest.raises(ConfigError, match="guesses: must be at least 1 where draft is set, got 0"):
        Engine(language, draft=language)
    with pytest.raises(ConfigError, match="guesses: must be at least 0, got -1"):
        Engine(language, guesses=-1)
    with pytest.raises(ConfigError, match="draft: its context is 64, the model's 128"):
        Engine(language, guesses=2, draft=replace(language, context=64))
    other = load(exported, device="cpu")
    other.tokenizer.add_tokens(["def"])
    with pytest.raises(ConfigError, match="draft: its tokenizer has other tokens"):
        Engine(language, guesses=2, draft=other)


@pytest.mark.parametrize("guesses", [0, 3])
def test_a_pass_that_fails_ends_those_in_it_and_no_later_one(exported: str, guesses: int) -> None:
    engine = Engine(load(exported, device="cpu"), lanes=2, guesses=guesses)
    wanted = engine.answer("def f(", GREEDY).ids
    real = engine._computed.forward
    engine._computed.forward = lambda fed: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(Exception, match="ZeroDivisionError"):
        engine.answer("def f(", GREEDY)
    engine._computed.forward = real  # type: ignore[method-assign]
    assert engine.answer("def f(", GREEDY).ids == wanted
    engine.close()


@pytest.mark.parametrize("where", ["join", "forward"])
def test_what_a_gpu_says_to_all_is_kept(exported: str, where: str) -> None:
    """Any other error is of one pass; this one is of the process, which Ray Serve then starts anew."""
    engine = Engine(load(exported, device="cpu"), lanes=2)
    server = LanguageServer.func_or_class
    assert issubclass(server, Renewed)
    for error, said in ((torch.OutOfMemoryError("of memory"), ""), (torch.AcceleratorError("CUDA error"), "CUDA")):

        def fails(*of: Any, error: Exception = error) -> Any:
            raise error

        setattr(engine._computed, where, fails)
        with pytest.raises(RtrainError, match=str(error)):
            engine.answer("def f(", GREEDY)
        assert said in engine.broken and bool(said) == bool(engine.broken)
        assert server.broken.fget(SimpleNamespace(engine=engine)) == engine.broken
    engine.close()


@pytest.mark.parametrize("how", ["closed", "its thread fails"])
def test_nobody_waits_for_a_thread_that_ended(exported: str, how: str) -> None:
    engine = Engine(load(exported, device="cpu"), lanes=1)
    reached, held = threading.Event(), threading.Event()
    said: SimpleQueue[Piece] = SimpleQueue()

    def wait(piece: Piece) -> None:
        reached.set()
        assert held.wait(30)
        said.put(piece)

    engine.submit("def f(", Sampling(max_tokens=100, temperature=0), wait)
    assert reached.wait(30)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(engine.answer, "def f(", GREEDY)
        while engine.load[1] == 0:
            assert not waits.done()
        if how == "closed":
            threading.Thread(target=engine.close).start()
            while not engine._closed:
                pass
        else:
            engine._leave = engine._turn = lambda of: 1 / 0  # type: ignore[method-assign,assignment,return-value]
        held.set()
        with pytest.raises(RtrainError, match="stopping" if how == "closed" else "ZeroDivisionError"):
            waits.result(timeout=30)
    pieces = [said.get(timeout=30)]
    while not pieces[-1].finish:
        pieces.append(said.get(timeout=30))
    assert pieces[-1].finish == "error" and bool(engine.broken) == (how != "closed")
    with pytest.raises(Busy, match="stopping"):
        engine.answer("def f(", GREEDY)


def test_the_token_that_ends_a_document_ends_the_answer(engine: Engine) -> None:
    ids = generated(engine, "def f(", 40)
    ends = frozenset({ids[10]})
    object.__setattr__(engine.language, "ends", ends)
    answer = engine.answer("def f(", GREEDY)
    first = ids.index(ids[10])
    assert (answer.finish, answer.ids, answer.text) == (
        "stop",
        ids[: first + 1],
        engine.language.text(list(ids[:first])),
    )


def test_a_seed_draws_the_same_tokens_beside_others_and_alone(engine: Engine) -> None:
    drawn = Sampling(max_tokens=40, temperature=0.9, top_p=0.95, seed=7)
    alone = engine.answer("def f(", drawn)
    others = [Sampling(max_tokens=30, seed=seed) for seed in (7, 1, None)]
    beside = together(engine, [("def f(", drawn), *zip(PROMPTS, others, strict=False)])
    assert beside[0].ids == alone.ids
    assert engine.answer("def f(", Sampling(max_tokens=40, temperature=0.9, top_p=0.95, seed=8)).ids != alone.ids
    free = Sampling(max_tokens=40, temperature=0.9)
    assert engine.answer("def f(", free).ids != engine.answer("def f(", free).ids


def test_top_p_keeps_the_likeliest_that_reach_it() -> None:
    logits = torch.tensor([0.5, 0.1, 0.3, 0.1]).log()
    generator = torch.Generator().manual_seed(0)
    for top_p, kept in ((0.5, {0}), (0.6, {0, 2}), (0.8, {0, 2}), (1.0, {0, 1, 2, 3})):
        sampling = Sampling(top_p=top_p)
        assert {sampling.choose(logits, [], generator) for _ in range(300)} == kept
    colder = [Sampling(temperature=0.5).choose(logits, [], generator) for _ in range(4000)]
    assert colder.count(0) / 4000 == pytest.approx(0.25 / 0.36, abs=0.03)


class Moved:
    """What OpenAI's reference says of penalties and biases, as transformers takes it; written for this test alone."""

    def __init__(self, prompt: int, sampling: Sampling):
        self.prompt, self.sampling = prompt, sampling

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores, answer = scores.clone(), ids[0, self.prompt :].tolist()
        for token in range(scores.shape[1]):
            times = answer.count(token)
            scores[0, token] -= times * self.sampling.frequency_penalty
            scores[0, token] -= (times > 0) * self.sampling.presence_penalty
            scores[0, token] += dict(self.sampling.logit_bias).get(token, 0.0)
        return scores


@pytest.mark.parametrize("way", ["together", "alone", "lookup", "itself as draft"])
@pytest.mark.parametrize(
    "asked",
    [
        {"frequency_penalty": 0.7},
        {"presence_penalty": -1.5},
        {"frequency_penalty": -0.3, "presence_penalty": 2.0, "logit_bias": ((101, 3.5), (32, -100.0))},
    ],
    ids=str,
)
def test_penalties_and_biases_are_those_of_generate_with_them(exported: str, way: str, asked: dict[str, Any]) -> None:
    language = load(exported, device="cpu")
    options = WAYS[way] | ({"draft": language} if "draft" in WAYS[way] else {})
    engine = Engine(language, lanes=8, **options)
    sampling = replace(GREEDY, logprobs=0, **asked)
    wanted, plain = list[tuple[int, ...]](), list[tuple[int, ...]]()
    for prompt in PROMPTS:
        ids = torch.tensor([language.ids(prompt)])
        out = language.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40, pad_token_id=0,
            logits_processor=[Moved(ids.shape[1], sampling)],
        )  # fmt: skip
        wanted.append(tuple(out[0, ids.shape[1] :].tolist()))
        plain.append(generated(engine, prompt, 40))
    answers = together(engine, [(prompt, sampling) for prompt in PROMPTS])
    assert [answer.ids for answer in answers] == wanted and wanted != plain
    # What is said of how likely a token is, is the model's own.
    scored = engine.answer(
        language.ids(PROMPTS[0]) + list(wanted[0][:-1]), Sampling(max_tokens=0, echo=True, logprobs=0)
    )
    ends = -1 if wanted[0][-1] in language.ends else len(wanted[0])
    of_model = [token.logprob for token in scored.tokens[len(language.ids(PROMPTS[0])) :]]
    of_answer = [token.logprob for token in answers[0].tokens[:ends]]
    assert of_answer[: len(of_model)] == pytest.approx(of_model[: len(of_answer)], abs=1e-4)
    engine.close()


def test_a_token_can_be_forced_and_forbidden(engine: Engine) -> None:
    forced = engine.answer("def f(", replace(GREEDY, max_tokens=5, logit_bias=((65, 100.0),)))
    assert forced.ids == (65,) * 5
    drawn = Sampling(max_tokens=60, temperature=2.0, seed=1)
    common = max(set(ids := engine.answer("def f(", drawn).ids), key=ids.count)
    assert common not in engine.answer("def f(", replace(drawn, logit_bias=((common, -100.0),))).ids


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"frequency_penalty": 2.1}, "frequency_penalty: must be from -2 to 2, got 2.1"),
        ({"presence_penalty": float("nan")}, "presence_penalty: must be from -2 to 2, got nan"),
        ({"logit_bias": ((1, -101.0),)}, "logit_bias: must be from -100 to 100, got -101.0"),
        ({"logit_bias": tuple((n, 0.0) for n in range(1025))}, "logit_bias: at most 1024 tokens, got 1025"),
        ({"logit_bias": ((256, 1.0),)}, "logit_bias: token 256 is not of the vocabulary, 0..255"),
    ],
    ids=["frequency", "presence", "bias", "biases", "token"],
)
def test_penalties_and_biases_that_do_not_fit(engine: Engine, asked: dict[str, Any], why: str) -> None:
    with pytest.raises(DataError, match=why):
        engine.answer("def f(", Sampling(**asked))


def test_a_stop_text_across_tokens_ends_the_answer_and_is_not_given(engine: Engine) -> None:
    drawn = {"max_tokens": 40, "temperature": 0.8, "seed": 3}
    whole = engine.answer("import os\n", Sampling(**drawn)).text
    assert whole.isascii()  # a token is a byte here
    at = next(at for at in range(8, 36) if whole.index(whole[at : at + 4]) == at)
    stop = whole[at : at + 4]
    pieces: list[Piece] = []
    done = threading.Event()

    def emit(piece: Piece) -> None:
        pieces.append(piece)
        if piece.finish:
            done.set()

    sampling = Sampling(**drawn, stop=(stop, "never seen"), logprobs=0)
    ticket = engine.submit("import os\n", sampling, emit)
    assert done.wait(30)
    text = "".join(piece.text for piece in pieces)
    assert text == whole[:at] and pieces[-1].finish == "stop"
    assert len(ticket.ids) == len(text) + 4
    assert sum(len(piece.tokens) for piece in pieces) == len(text)


def test_log_probabilities_are_those_of_a_plain_forward(engine: Engine) -> None:
    answer = engine.answer("import os\n", Sampling(max_tokens=24, temperature=0.7, top_p=0.9, seed=3, logprobs=3))
    prompt = engine.language.ids("import os\n")
    with torch.no_grad():
        logits = engine.language.model(torch.tensor([prompt + list(answer.ids)])).logits[0]
    wanted = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    assert len(answer.tokens) == 24
    for token, row in zip(answer.tokens, wanted, strict=True):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-5)
        best = row.topk(3)
        assert [i for i, _ in token.likeliest] == best.indices.tolist()
        assert [p for _, p in token.likeliest] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_beyond_the_queue_a_request_is_refused_and_a_cancelled_one_ends(exported: str) -> None:
    engine = Engine(load(exported, device="cpu"), lanes=1, waiting=2)
    held, reached = threading.Event(), threading.Event()

    def wait(piece: Piece) -> None:
        reached.set()
        assert held.wait(30)

    first = engine.submit("def f(", Sampling(max_tokens=100, temperature=0), wait)
    assert reached.wait(30)
    waiting = [engine.submit("def f(", GREEDY, lambda piece: None) for _ in range(2)]
    with pytest.raises(Busy, match="2 requests wait already"):
        engine.submit("def f(", GREEDY, lambda piece: None)
    for ticket in (first, *waiting):
        ticket.cancel()
    held.set()
    assert engine.answer("def f(", GREEDY).finish == "length"
    assert len(first.ids) < 100 and not waiting[0].ids
    engine.close()
    with pytest.raises(Busy, match="stopping"):
        engine.answer("def f(", GREEDY)


@pytest.mark.parametrize(
    ("prompt", "tokens", "said"),
    [("", 1, "prompt: it has no token"), ([256], 1, "prompt: token 256 is not"), ("x" * 120, 9, "context has 128")],
)
def test_what_cannot_be_asked(engine: Engine, prompt: Any, tokens: int, said: str) -> None:
    with pytest.raises(TooLong if "context" in said else DataError, match=said):
        engine.answer(prompt, Sampling(max_tokens=tokens))


def test_one_failure_is_not_that_of_others(engine: Engine) -> None:
    real = engine.language.text
    object.__setattr__(engine.language, "text", lambda ids: 1 / 0 if ids[0] == 0 else real(ids))
    assert engine.answer("def f(", GREEDY).finish == "length"
    object.__setattr__(engine.language, "text", lambda ids: 1 / 0)
    with pytest.raises(Exception, match="ZeroDivisionError"):
        engine.answer("def f(", GREEDY)
    object.__setattr__(engine.language, "text", real)
    assert engine.answer("def f(", GREEDY).finish == "length"


def test_a_folder_that_is_no_export(exported: str, tmp_path: Path) -> None:
    assert is_language(exported) and not is_language(str(tmp_path))
    with pytest.raises(CheckpointError, match="no whole language export"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": 0}, {"temperature": 3}, {"top_p": 0}, {"stop": ("",)}, {"logprobs": 21}]
)
def test_a_sampling_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=next(iter(wrong))):
        Sampling(**wrong)
