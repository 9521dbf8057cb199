"""`plan --hardware` on the command line: JSON, and options that mean nothing."""

import json
from typing import Any

import pytest

from recipes.gpt_stdlib import debug, run
from rtrain import cli


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*words: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(run, debug, arguments=["plan", *words])
        return ended.value.code, *capsys.readouterr()

    return call


def test_json_has_the_plan_and_the_outlook(plan: Any) -> None:
    code, out, _ = plan("--hardware", "h100", "--price", "2.5", "--json")
    found = json.loads(out)
    assert code == 0 and found["world_size"] == 2 and found["memory_per_rank"] == 80 * 2**30
    assert found["outlook"]["devices"] == 2 and found["outlook"]["cost"] > 0


def test_failures_are_counted_where_something_is_said_of_them(plan: Any) -> None:
    words = ["--hardware", "h100", "--price", "2.5", "--json"]
    without = json.loads(plan(*words)[1])["outlook"]
    found = json.loads(plan(*words, "--mtbf-hours", "10", "--write-gb-s", "0.001", "--restart-s", "600")[1])["outlook"]
    expected = found["expected"]
    assert without["expected"] is None
    assert expected["nodes"] == 1 and expected["interruption_s"] == 36_000
    assert expected["write_s"] == pytest.approx(expected["checkpoint_bytes"] / 1e6)
    assert 0.9 < expected["goodput"] < 1
    assert expected["every_steps"] * found["step_s"] == expected["every_s"] >= expected["write_s"]
    assert found["hours"] == pytest.approx(without["hours"] / expected["goodput"])
    assert found["cost"] == pytest.approx(without["cost"] / expected["goodput"])
    assert "failures and checkpoints counted" in plan(*words[:-1], "--mtbf-hours", "10")[1]


def test_rows_give_hours_and_a_slow_reader_is_waited_for(plan: Any) -> None:
    words = ["--hardware", "h100", "--json"]
    found = json.loads(plan(*words, "--read-rows-s", "1000")[1])["outlook"]
    waits = found["parts"]["waiting for input"]
    assert waits > 0 and found["step_s"] == pytest.approx(run().global_batch / 2 / 1000)  # two ranks read
    fast = json.loads(plan(*words, "--read-rows-s", "1e9")[1])["outlook"]
    assert fast["parts"]["waiting for input"] == 0 and fast["step_s"] == pytest.approx(found["step_s"] - waits)


def test_an_epochs_rows_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    from recipes import dlrm_movielens

    with pytest.raises(SystemExit):
        cli.main(
            dlrm_movielens.run, dlrm_movielens.debug,
            arguments=["plan", "--hardware", "h100", "--json", "--rows", "5120", "--price", "1"],
        )  # fmt: skip
    found = json.loads(capsys.readouterr().out)["outlook"]
    with pytest.raises(SystemExit):
        cli.main(
            dlrm_movielens.run, dlrm_movielens.debug,
            arguments=["plan", "--hardware", "h100", "--json", "--rows", "5120", "--scale", "2..4", "--price", "1"],
        )  # fmt: skip
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["hours"] > 0 and row["cost"] > 0 for row in rows] == [True, True]
    assert found["steps"] == 3 * 10 and found["cost"] == pytest.approx(2 * found["hours"])


def test_a_search_and_a_scale_answer_in_json(plan: Any) -> None:
    found = json.loads(plan("--hardware", "cpu", "--search", "--devices", "4", "--json")[1])
    assert found["layouts"][0]["step_s"] <= found["layouts"][-1]["step_s"] and found["best"]["devices"] == 4
    rows = json.loads(plan("--hardware", "cpu", "--scale", "1..4", "--scaling", "strong", "--json")[1])
    assert [row["devices"] for row in rows["rows"]] == [1, 2, 4] and rows["scaling"] == "strong"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--price", "2"], "--price: means nothing without --hardware. Add --hardware h100"),
        (
            ["--hardware", "h100", "--restart-s", "9"],
            "--restart-s: means nothing without --mtbf-hours. Add --mtbf-hours",
        ),
        (["--hardware", "h100", "--mtbf-hours", "-1"], "--mtbf-hours: must be a number above 0, got -1"),
        (["--hardware", "h100", "--mtbf-hours", "9", "--search"], "--mtbf-hours: tells of one layout alone"),
        (["--hardware", "h100", "--devices", "8"], "--devices: means nothing without --search. Add --search"),
        (["--hardware", "h100", "--scaling", "weak"], "--scaling: means nothing without --scale. Add --scale 8..64"),
        (["--hardware", "h100", "--search", "--scale", "1..2"], "Ask for one of them"),
        (["--hardware", "h100", "--scale", "8-16"], "--scale: must be two numbers of devices, as 8..64"),
        (["--hardware", "h100", "--scale", "16..8"], "the smaller first, got '16..8'"),
        (["--hardware", "h100", "--price", "-1"], "--price: must be above 0, got -1"),
        (["--hardware", "h100", "--devices-per-node", "0"], "--devices-per-node: must be at least 1, got 0"),
        (["--hardware", "h10"], "no profile 'h10'; did you mean 'h100'?"),
    ],
)
def test_what_means_nothing_is_refused(plan: Any, words: list[str], said: str) -> None:
    code, _, err = plan(*words)
    assert code == 2 and said in err and err.count("\n") == 1
