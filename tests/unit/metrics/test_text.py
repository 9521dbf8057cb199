"""BLEU and ROUGE: beside other code, over ranks, and of a file by the command."""

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from torchmetrics.functional.text import sacre_bleu_score

from rtrain.cli import console
from rtrain.errors import ConfigError
from rtrain.metrics.names import metric_of
from rtrain.metrics.state import Metric
from rtrain.metrics.text import BLEU, ROUGE, TextPairs

Capsys = pytest.CaptureFixture[str]
Command = Callable[..., object]
WORDS = ["the", "a", "cat", "sat", "on", "mat", "dog", "ran", "fast", "over", "hill", "it's", "3.5", "New-York", ","]


def drawn(seed: int, count: int = 40, references: int = 2) -> TextPairs:
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(5, 14)))

    def near(of: str) -> str:
        return " ".join(word if rng.random() < 0.8 else rng.choice(WORDS) for word in of.split())

    wanted = [tuple(text() for _ in range(references)) for _ in range(count)]
    return TextPairs(tuple(near(rng.choice(of)) for of in wanted), tuple(wanted))


def parts(pairs: TextPairs) -> list[TextPairs]:
    """Of three ranks, one of which has nothing."""
    cut = len(pairs.predictions) // 3
    ranges = (slice(0, cut), slice(cut, None), slice(0, 0))
    return [TextPairs(pairs.predictions[of], pairs.references[of]) for of in ranges]


def over_ranks(metric: Metric, pairs: TextPairs) -> float:
    first, second, third = (metric.partial(part) for part in parts(pairs))
    return metric.value(first + second + third)


@pytest.mark.parametrize("seed", range(5))
def test_bleu_is_what_torchmetrics_computes(seed: int) -> None:
    pairs = drawn(seed)
    theirs = 100 * float(sacre_bleu_score(pairs.predictions, pairs.references))
    assert 20 < theirs < 90
    assert over_ranks(BLEU(), pairs) == pytest.approx(theirs, rel=1e-5)  # theirs is in float32


def shared(a: list[str], b: list[str], of: str) -> tuple[int, int, int]:
    """What both have in common, and how much each has."""
    if of != "L":
        grams = [Counter(zip(*(x[i:] for i in range(int(of))), strict=False)) for x in (a, b)]
        return sum((grams[0] & grams[1]).values()), sum(grams[0].values()), sum(grams[1].values())
    longest = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            longest[i + 1][j + 1] = longest[i][j] + 1 if left == right else max(longest[i][j + 1], longest[i + 1][j])
    return longest[-1][-1], len(a), len(b)


def f_measure(prediction: str, reference: str, of: str) -> float:
    both, predicted, wanted = shared(
        *(re.sub(r"[^a-z0-9]+", " ", text.lower()).split() for text in (prediction, reference)), of=of
    )
    return 2 * both / (predicted + wanted) if predicted + wanted else 0.0


@pytest.mark.parametrize("of", ["1", "2", "L"])
def test_rouge_is_the_mean_f_measure_by_hand(of: str) -> None:
    pairs = drawn(7, references=1)
    by_hand = [f_measure(p, r, of) for p, (r,) in zip(pairs.predictions, pairs.references, strict=True)]
    metric = ROUGE(of=of)  # type: ignore[arg-type]
    assert over_ranks(metric, pairs) == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-6)  # theirs is in float32
    assert 0.1 < sum(by_hand) / len(by_hand) < 0.95


def test_of_several_references_the_nearest_counts() -> None:
    pairs = TextPairs(("a cat sat",), (("dogs ran", "a cat sat"),))
    assert ROUGE(of="2").value(ROUGE(of="2").partial(pairs)) == pytest.approx(1.0)


def test_what_cannot_be() -> None:
    for metric in (BLEU(), ROUGE()):
        empty = metric.value(metric.partial(TextPairs((), ())))
        assert empty != empty
    with pytest.raises(ConfigError, match="ROUGE.of: must be '1', '2' or 'L', got '3'"):
        ROUGE(of="3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one reference"):
        TextPairs(("a",), ((),))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """`rtrain metrics text` on words; its exit code."""

    def call(*words: str) -> object:
        monkeypatch.setattr(sys, "argv", ["rtrain", "metrics", "text", *words])
        with pytest.raises(SystemExit) as ended:
            console()
        return ended.value.code

    return call


def test_the_command_measures_a_file(tmp_path: Path, capsys: Capsys, command: Command) -> None:
    pairs = drawn(3)
    lines = [{"prediction": p, "references": list(r)} for p, r in zip(pairs.predictions, pairs.references, strict=True)]
    lines.append({"prediction": "one\u2028cat", "reference": "one dog"})
    path = tmp_path / "said.jsonl"
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\r\n")
    assert command(str(path), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    whole = TextPairs((*pairs.predictions, "one\u2028cat"), (*pairs.references, ("one dog",)))
    assert found == {
        "pairs": 41,
        **{m.name: m.value(m.partial(whole)) for m in (BLEU(), ROUGE(of="1"), ROUGE(of="2"), ROUGE(of="L"))},
    }
    assert command(str(path)) == 0
    assert "bleu" in capsys.readouterr().out
    assert [metric_of(key) for key in found if key != "pairs"] == [BLEU(), ROUGE(of="1"), ROUGE(of="2"), ROUGE(of="L")]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: it is no JSON"),
        ("[1]", "line 2: it is no object with prediction and reference, got '\\[1\\]'"),
        ('{"prediction": "a", "refrence": "b"}', "'refrence' is not known; did you mean 'reference'"),
        ('{"prediction": "a"}', "needs prediction, and either reference or references, got prediction"),
        ('{"prediction": "a", "references": []}', "references a list of texts, of one at least"),
        ('{"prediction": "a", "references": "b"}', "references a list of texts"),
        ('{"prediction": 1, "reference": "b"}', "prediction and reference are text"),
    ],
)
def test_a_line_that_is_no_pair(line: str, says: str, tmp_path: Path, capsys: Capsys, command: Command) -> None:
    path = tmp_path / "said.jsonl"
    path.write_text('{"prediction": "a", "reference": "b"}\n' + line)
    assert command(str(path)) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(says, error)


def test_a_file_that_is_not_there_or_empty(tmp_path: Path, capsys: Capsys, command: Command) -> None:
    assert command(str(tmp_path / "none.jsonl")) == 2
    assert "no such file of JSON lines" in capsys.readouterr().err
    (tmp_path / "empty.jsonl").write_text("\n")
    assert command(str(tmp_path / "empty.jsonl")) == 2
    assert "there is no line in it" in capsys.readouterr().err
