"""The command line: exit codes, one line an error, JSON where asked for, and help that names every field."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from recipes.dlrm_movielens import debug, run
from rtrain import cli, config
from rtrain.cli.recipe import RECIPE_VERBS, RUN, VERBS, golden
from rtrain.cli.verbs import VERBS as OWN_VERBS
from rtrain.optim import AdamW
from rtrain.version import VERSION

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "recipes" / "dlrm_movielens.py")


class Ended(NamedTuple):
    code: Any
    out: str
    err: str


@pytest.fixture
def recipe(capsys: pytest.CaptureFixture[str]) -> Any:
    """A recipe's `main` on the words of a command line."""

    def call(*words: str, debug: Any = debug) -> Ended:
        with pytest.raises(SystemExit) as ended:
            cli.main(run, debug, arguments=words)
        return Ended(ended.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def rtrain_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The `rtrain` command on the words of a command line."""

    def call(*words: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["rtrain", *words])
        monkeypatch.setattr(sys, "path", [*sys.path])  # a recipe's folder is put in front
        with pytest.raises(SystemExit) as ended:
            cli.console()
        return Ended(ended.value.code, *capsys.readouterr())

    return call


REFUSED = [
    (["trian"], "unknown verb 'trian'; did you mean 'train'?"),
    (["plan", "--lr", "1"], "lr: Run has no field 'lr'; did you mean 'optim.lr' or 'sparse_optim.lr'?"),
    (["plan", "--workers", "1"], "workers: Run has no field 'workers'; did you mean 'cluster.workers'?"),
    (["plan", "--globl_batch", "1"], "globl_batch: Run has no field 'globl_batch'; did you mean 'global_batch'?"),
    (["plan", "--worker", "1"], "worker: Run has no field 'worker'; did you mean 'cluster.workers'?"),
    (["plan", "--zzz", "1"], "zzz: Run has no field 'zzz'. Its fields: name, model, data, "),
    (
        ["plan", "--evaluation.monitor", "ndcg"],
        "evaluation.monitor: 'ndcg' is not among the metrics: auc, log_loss, ndcg@10; did you mean 'ndcg@10'?",
    ),
    (["plan", "--checkpoint.no_keep"], "checkpoint.no_keep: no value given"),
    (["plan", "--fresh"], "--fresh: plan does not take it; it is of train"),
    (["train", "--trials", "3"], "--trials: train does not take it; it is of tune"),
    (["zzzz"], "unknown verb 'zzzz'. Verbs: train, plan, parity, chaos, tune, serve, config"),
    (["plan", "--optim.lrr", "1"], "optim.lrr: AdamW has no field 'lrr'; did you mean 'lr'?"),
    (
        ["plan", "--optim.learning_rate", "1"],
        "optim.learning_rate: AdamW has no field 'learning_rate'; did you mean 'lr'?",
    ),
    (
        ["plan", "--tracking.to", "jsonl,wnadb"],
        "tracking.to: expected list of one of 'tensorboard', 'wandb', 'mlflow', 'jsonl', got ('jsonl', 'wnadb') "
        "(tuple); did you mean 'wandb'?",
    ),
    (
        ["plan", "--parallel.dense", "https://me:hidden@host/x?sig=hidden"],
        "parallel.dense: expected one of 'zero', 'ddp', got 'https://***@host/x?sig=***",
    ),
    (
        ["plan", "--parallel.dense", "zro"],
        "parallel.dense: expected one of 'zero', 'ddp', got 'zro' (str); did you mean 'zero'?",
    ),
    (["plan", "--optim.lrr=1"], "optim.lrr: AdamW has no field 'lrr'; did you mean 'lr'?"),
    (["--optim.lrr", "1"], "optim.lrr: AdamW has no field 'lrr'; did you mean 'lr'?"),
    (["plan", "--optim.lr", "fast"], "optim.lr: expected float, got 'fast' (str)"),
    (["plan", "--max_steps", "5"], "max_steps: Run has no field 'max_steps'; did you mean 'duration.steps'?"),
    (["plan", "--duration.steps", "ten"], "duration.steps: expected int | none, got 'ten' (str)"),
    (["plan", "--metrics.2", "5"], "metrics.2: expected Metric, got '5' (str). Write one in the recipe"),
    (["plan", "--metrics.7.k", "5"], "metrics.7: there are 3 items here, so the index must be 0..2"),
    (["plan", "--optim.lr", "-1"], "optim.lr: must be positive, got -1.0"),
    (["plan", "--model.bottom", "-1"], "model.bottom: a hidden size is at least 1, got (-1,)"),
    (["plan", "--data.schema.features.0.rows", "-5"], "feature 'user_id': rows must be positive, got -5"),
    (["plan", "--optim.lr"], "optim.lr: no value given; write --optim.lr VALUE"),
    (["plan", "--metrics"], "metrics: its fields are set one by one, such as --metrics.2.k VALUE"),
    (["plan", "--batch", "64"], "batch: Run has no field 'batch'; did you mean 'global_batch' or 'evaluation.batch'?"),
    (["plan", "--jsn"], "jsn: no value given; did you mean '--json'?"),
    (["plan", "loose"], "command line: 'loose' is neither an option nor the value of one"),
    (["plan", "--handoff.serve_check", "maybe"], "handoff.serve_check: expected true or false, got 'maybe'"),
    (["plan", "--optim.Lr", "1"], "optim.Lr: AdamW has no field 'Lr'; did you mean 'lr'?"),
    (["plan", "--metrics.0.k", "5"], "metrics.0.k: AUC has no field 'k'. Its fields: none"),
    (["plan", "-x", "1"], "command line: '-x' is neither an option nor the value of one"),
    (["tune", "--trials", "many"], "command line: argument --trials: invalid int value: 'many'"),
    (["train", "--launcher", "slurm"], "command line: argument --launcher: invalid choice: 'slurm'"),
    (["plan", "--cluster.workers", "3", "--parallel.tensor", "2"], "parallel: tensor(2) * pipeline(1) = 2 does not"),
    (["plan", "--parallel.tensor", "2"], "parallel.tensor: 2, but DLRM has no tensor-parallel plan"),
    (["chaos", "--failures", "kill-rnk"], "--failures: unknown 'kill-rnk'; did you mean 'kill-rank'?"),
    (["train", "--launcher", "inlin"], "command line: argument --launcher: invalid choice: 'inlin' (choose from"),
    (["chaos", "--launcher", "inline"], "chaos: launcher 'inline' restarts no worker. Use Ray"),
    (["chaos", "--faults.max_failures", "0"], "chaos: faults.max_failures is 0, so the first failure ends the run"),
    (["plan", "--data.source", "/nope.parquet"], "/nope.parquet: no such file or folder. Check data.source"),
    (["train", "--name", "a/b"], "name: 'a/b' must be letters, digits"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(recipe: Any, words: list[str], message: str) -> None:
    ended = recipe(*words)
    assert ended.code == 2
    assert ended.err.startswith(f"error: {message}")
    assert ended.err.count("\n") == 1 and ended.err.endswith("\n")
    assert ended.out == ""


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_with_json_a_mistake_is_also_one_object_on_stdout(recipe: Any, words: list[str], message: str) -> None:
    ended = recipe("--json", *words) if words[0].startswith("--") else recipe(words[0], "--json", *words[1:])
    said = json.loads(ended.out)
    assert ended.out.count("\n") == 1
    assert said["exit_code"] == ended.code == 2
    assert said["error"].startswith(message)
    assert ended.err == f"error: {said['error']}\n"


def test_debug_without_a_debug_config_is_refused(recipe: Any) -> None:
    assert recipe("plan", "--debug", debug=None) == (2, "", "error: --debug: this recipe has no debug()\n")


def test_a_recipe_of_the_wrong_type_is_refused_by_its_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(lambda: replace(run(), seed="7"), arguments=["plan"])  # type: ignore[arg-type]
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: seed: expected int, got '7' (str)\n"


def test_a_wrong_type_that_trips_a_configs_own_check_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(lambda: replace(run(), optim=AdamW(lr="fast")), arguments=["plan"])  # type: ignore[arg-type]
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: AdamW.lr: expected float, got 'fast' (str)\n"
    with pytest.raises(TypeError, match="unsupported operand"):  # no field's type: a mistake in the recipe's own code
        cli.main(lambda: replace(run(), seed=1 + "1"), arguments=["plan"])  # type: ignore[operator]


def test_an_error_that_nobody_foresaw_keeps_its_traceback() -> None:
    def broken() -> Any:
        raise ZeroDivisionError("in the recipe")

    with pytest.raises(ZeroDivisionError, match="in the recipe"):
        cli.main(broken, arguments=["plan"])


def test_an_interrupt_is_exit_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        cli.main(interrupted, arguments=["plan", "--json"])
    assert ended.value.code == 130
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": "interrupted", "exit_code": 130}
    assert err == "interrupted; the same command goes on from the last checkpoint\n"


def test_plan_as_json_lays_every_row_of_every_table_on_one_rank(recipe: Any) -> None:
    ended = recipe("plan", "--json", "--parallel.embeddings", "row_wise", "--cluster.workers", "4")
    assert ended.code == 0
    assert ended.out.count("\n") == 1
    plan = json.loads(ended.out)
    assert plan["world_size"] == 4
    assert plan["axes"] == {"pipeline": 1, "data": 4, "tensor": 1}
    assert [r["rank"] for r in plan["ranks"]] == [0, 1, 2, 3]
    assert {t["table"]: t["rows"] for t in plan["tables"]} == run().data.schema.tables
    for table in plan["tables"]:
        # Three rows leave the fourth rank none, which fbgemm cannot have.
        assert table["sharding"] == ("table_wise" if table["table"] == "gender" else "row_wise")
        assert sum(shard["sizes"][0] for shard in table["shards"]) == table["rows"]
    assert len(plan["bytes_per_rank"]) == 4
    assert plan["memory_per_rank"] > 0


def test_plan_as_text_names_each_table_and_each_rank(recipe: Any) -> None:
    ended = recipe("plan", "--cluster.memory_gb_per_worker", "2")
    assert ended.code == 0
    assert ended.out.startswith("dlrm-movielens: 2 ranks = pipeline 1 x data 2 x tensor 1\n")
    first_words = [line.split()[0] for line in ended.out.splitlines() if line]
    assert set(run().data.schema.tables) <= set(first_words)
    assert first_words.count("rank") == 2
    assert ended.out.endswith("memory per rank: 2.0 GiB (cluster.memory_gb_per_worker)\n")


def test_config_prints_the_resolved_config(recipe: Any) -> None:
    changes = {"optim.lr": "3e-4", "duration.steps": "none", "model.top": "8,4"}
    words = [word for key, value in changes.items() for word in (f"--{key}", value)]
    assert recipe("config", *words) == (0, golden(config.override(run(), changes)), "")
    assert recipe("config") == (0, golden(run()), "")
    assert recipe("config", "--debug") == (0, golden(debug()), "")


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        ("--model.bottom 64 32", "model.bottom", [64, 32]),
        ("--model.bottom 64, 32", "model.bottom", [64, 32]),
        ("--model.bottom 64,32", "model.bottom", [64, 32]),
        ("--model.bottom=64,32", "model.bottom", [64, 32]),
        ("--model.bottom [64,32]", "model.bottom", [64, 32]),
        ("--model.bottom 7", "model.bottom", [7]),
        ("--tracking.to jsonl wandb", "tracking.to", ["jsonl", "wandb"]),
        ("--checkpoint.no_background", "checkpoint.background", False),
        ("--no-checkpoint.background", "checkpoint.background", False),
        ("--checkpoint.no-background", "checkpoint.background", False),
        ("--checkpoint.background", "checkpoint.background", True),
        ("--checkpoint.background false", "checkpoint.background", False),
        ("--checkpoint.background=false", "checkpoint.background", False),
        ("--metrics.2.k 20", "metrics.2.k", 20),
        ("--data.schema.features.0.rows=2000", "data.schema.features.0.rows", 2000),
        ("--optim.lr 3e-4", "optim.lr", 3e-4),
        ("--duration.steps none", "duration.steps", None),
    ],
)
def test_a_value_in_every_form_that_help_shows(recipe: Any, words: str, key: str, value: Any) -> None:
    for more in (["--seed", "7"], []):
        ended = recipe("config", *words.split(), *more)
        assert (ended.code, ended.err) == (0, "")
        assert f"\n{key} = {json.dumps(value)}\n" in ended.out


def test_config_as_json_is_the_stored_form(recipe: Any) -> None:
    ended = recipe("config", "--json", "--debug", "--optim.lr=3e-4")
    assert ended.code == 0
    assert config.from_dict(json.loads(ended.out)) == config.override(debug(), {"optim.lr": 3e-4})


def test_dashes_within_a_key_are_underscores(recipe: Any) -> None:
    assert recipe("config", "--global-batch", "64") == recipe("config", "--global_batch=64")
    assert "\nglobal_batch = 64\n" in recipe("config", "--global-batch", "64").out


def test_help_lists_every_field_with_its_doc(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # wider, and the fields stand in several columns
    ended = recipe("--help")
    assert (ended.code, ended.err) == (0, "")
    text = " ".join(ended.out.replace("│", " ").split())
    assert RUN.keys() == VERBS.keys()
    for verb, what in VERBS.items():
        assert f"{verb} {what}" in text
    for flag in ("--json", "--debug", "--fresh", "--launcher", "--trials", "--replicas", "-h, --help"):
        assert f" {flag} " in text
    # An empty tuple of configs has no field that a flag could set.
    leaves = [key for key, value in config.flatten(run()).items() if not key.endswith("$type") and value != []]
    absent = [key for key in leaves if f"--{key} " not in text and f"--{key}, " not in text]
    # A whole config or none: the recipe sets a student's, the verb `chaos` a failure's, and `Interactions.encoded` each
    # number's encoding; an id's vocabulary in a file, and how its rows are managed, are of the schema.
    known = (".encoding", ".vocabulary_file", ".managed")
    assert [key for key in absent if not key.endswith(known)] == ["model.distillation", "faults.inject"]
    assert "faults.inject (in the recipe alone)" in text
    for doc in (
        "Learning rate after warm-up. (default: 0.002)",
        "Folder of the run under `storage`; starting a name again resumes it.",
        "How TorchRec splits the tables; sharded: its planner chooses for each; table_row_wise: the rows of one over",
        "Places that count. (default: 10)",
        "Hidden sizes of the MLP that projects the dense features to `dim`.",
    ):
        assert doc in text


def test_a_mistake_leaves_no_traceback_in_a_real_process() -> None:
    words = [sys.executable, RECIPE, "plan", "--json", "--optim.lrr", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    message = "optim.lrr: AdamW has no field 'lrr'; did you mean 'lr'?"
    assert ended.returncode == 2
    assert ended.stderr == f"error: {message}\n"
    assert json.loads(ended.stdout) == {"error": message, "exit_code": 2}


def test_a_mistake_of_a_recipes_module_is_one_line_with_its_place(tmp_path: Path) -> None:
    lines = "from rtrain import ByTime, main\n{}\nmain(lambda: None)\n"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def ended(line: str) -> Ended:
        (tmp_path / "recipe.py").write_text(lines.format(line))
        words = [sys.executable, "recipe.py"]
        found = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
        return Ended(found.returncode, found.stdout, found.stderr)

    wrong = ended("SPLIT = ByTime(valid=2.0)")
    assert (wrong.code, wrong.out) == (2, "")
    assert wrong.err.startswith(f"error: {tmp_path}/recipe.py:2: data.split") and wrong.err.count("\n") == 1
    other = ended("1 / 0")
    assert other.code == 1 and "Traceback" in other.err and other.err.endswith("ZeroDivisionError: division by zero\n")


def test_rtrain_without_arguments_lists_its_verbs(rtrain_command: Any) -> None:
    ended = rtrain_command()
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("usage: rtrain [-h] [--version] VERB ...")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "command line: argument VERB: invalid choice: 'trian' (choose from 'doctor', "),
        (["report"], "command line: the following arguments are required: target"),
        (["report", "/no/such/run"], "there is no run in '/no/such/run'"),
        (["report", "a", "b"], "rtrain report: it takes no b; see rtrain report --help"),
        (["serve", "/no/such/run"], "serve: there is no export in '/no/such/run'"),
        (["trian", "x"], "command line: argument VERB: invalid choice: 'trian' (choose from 'doctor', "),
        (["plan"], "rtrain plan: which recipe? Give the path of its Python file: rtrain plan RECIPE"),
        (["plan", str(ROOT / "README.md")], f"rtrain plan: {ROOT}/README.md:"),
        (["plan", str(ROOT / "rtrain" / "version.py")], f"rtrain plan: {ROOT}/rtrain/version.py ended without calling"),
        (["data", "gett", "ml-100k"], "command line: argument ACTION: invalid choice: 'gett'"),
        (["plan", "gone.py"], "rtrain plan: there is no recipe 'gone.py'. Give the path of a Python file"),
        (["data", "get", "ml-1"], "there is no data set 'ml-1'"),
        (["data", "put", "ml-100k"], "command line: argument ACTION: invalid choice: 'put'"),
        (["init", "gone.csv"], "gone.csv: no such file"),
        (["doctor", "--prot", "1"], "rtrain doctor: it takes no --prot 1; see rtrain doctor --help"),
        (["config", RECIPE, "--optim.lrr", "1"], "optim.lrr: AdamW has no field 'lrr'; did you mean 'lr'?"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_mistake_at_rtrain_is_one_line_too(
    rtrain_command: Any, words: list[str], message: str, as_json: bool
) -> None:
    ended = rtrain_command(*words, *(["--json"] if as_json else []))
    assert ended.code == 2
    assert ended.err.startswith(f"error: {message}")
    assert ended.err.count("\n") == 1
    if as_json:
        said = json.loads(ended.out)
        assert said == {"error": ended.err.removeprefix("error: ").rstrip("\n"), "exit_code": 2}
    else:
        assert ended.out == ""


def test_report_of_an_empty_folder_is_refused_and_writes_nothing(rtrain_command: Any, tmp_path: Path) -> None:
    ended = rtrain_command("report", str(tmp_path))
    assert ended.code == 2
    assert f"there is no run in {str(tmp_path)!r}" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_rtrain_hands_a_recipe_its_own_words(rtrain_command: Any) -> None:
    words = ["--optim.lr", "3e-4", "--debug", "--seed=7", "--evaluation.patience", "none"]
    ended = rtrain_command("config", RECIPE, *words)
    assert (ended.code, ended.err) == (0, "")
    changes = {"optim.lr": 3e-4, "seed": 7, "evaluation.patience": None}
    assert ended.out == golden(config.override(debug(), changes))


def test_rtrain_plan_of_a_recipe_as_json(rtrain_command: Any) -> None:
    ended = rtrain_command("plan", RECIPE, "--json", "--cluster.workers", "3")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out)["world_size"] == 3


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["trian", "x"], "train"),
        (["checkpoint", "x"], "checkpoints"),
        (["checkpoints", "x", "verfy"], "verify"),
        (["data", "tokenise", "x"], "tokenize"),
    ],
)
def test_a_misspelt_verb_or_action_finds_the_near_one(rtrain_command: Any, words: list[str], near: str) -> None:
    ended = rtrain_command(*words)
    assert ended.code == 2
    assert ended.err.endswith(f"; did you mean {near!r}?\n")


def test_version(rtrain_command: Any) -> None:
    assert rtrain_command("--version") == (0, f"rtrain {VERSION}\n", "")


def test_help_of_a_recipes_verb_is_the_recipes(rtrain_command: Any) -> None:
    ended = rtrain_command("train", RECIPE, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert "--optim.lr FLOAT" in ended.out and "--metrics.2.k INT" in ended.out and "--fresh" in ended.out
    assert rtrain_command("train", "--help").out.startswith("usage: rtrain train RECIPE [options]")


def test_help_names_every_verb_once(rtrain_command: Any) -> None:
    listed = [line.split()[0] for line in rtrain_command("--help").out.splitlines() if re.match(r"  [a-z]", line)]
    assert sorted(listed) == sorted([*(verb.name for verb in OWN_VERBS), *RECIPE_VERBS])


def test_help_of_a_verb_that_takes_much_has_headings_and_a_short_usage(rtrain_command: Any) -> None:
    said = rtrain_command("release", "--help").out
    assert said.startswith("usage: rtrain release [options] RUN --as NAME --reason REASON\n\n")
    at = [said.index(f"\n{heading}:\n") for heading in ("options", "what takes it back", "two stages", "registry")]
    assert at == sorted(at) and at[1] < said.index("\n  --failed") < at[2] < said.index("\n  --retriever") < at[3]
    assert rtrain_command("serve", "--help").out.startswith("usage: rtrain serve [options] [RUN]\n")


def test_every_option_of_rtrain_has_its_help(rtrain_command: Any) -> None:
    verbs = [f"{verb.name} {action.name}" for verb in OWN_VERBS for action in verb.actions]
    for verb in (*(verb.name for verb in OWN_VERBS if not verb.actions), *verbs):
        ended = rtrain_command(*verb.split(), "--help")
        assert ended.code == 0
        options = ended.out.partition("options:")[2].strip("\n").splitlines()
        assert len(options) >= 2
        for line, following in zip(options, [*options[1:], ""], strict=True):
            if line.startswith("  -"):  # its meaning stands behind it, or on the next line
                assert "  " in line.strip() or following.startswith("    "), line


def test_the_search_goes_on_from_the_words_that_it_was_given(monkeypatch: pytest.MonkeyPatch, recipe: Any) -> None:
    from rtrain import tuning

    class Told:
        def to_json(self) -> dict[str, Any]:
            return {}

    asked = list[dict[str, Any]]()
    monkeypatch.setattr(tuning, "tune", lambda run, space, **options: asked.append(options) or Told())
    recipe("tune", "--trials=4", "--name", "tune", "--json", "--seed", "3", "--scheduler", "asha", "--grace", "7")
    assert asked[0]["command"].endswith("train --seed 3")  # the name is that of the search's folder
    assert asked[0]["search"] == tuning.Search(trials=4, scheduler=tuning.Asha(grace=7))
    recipe("tune", "--name=tune", "--seed=3", "--json", "--objectives", "auc,parameters", "--hours", "2", "--fresh")
    assert asked[1]["command"].endswith("train --seed=3")
    assert asked[1]["search"] == tuning.Search(objectives=("auc", "parameters"), hours=2.0)
    assert asked[1]["fresh"]
