"""Every command of the README runs as it stands there, one after the other; every file that it names is there."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from runpy import run_path

import pytest

from rtrain import cli, config
from rtrain.cli.recipe import LAUNCHERS, VERBS
from rtrain.planning import check
from tests.cluster.conftest import ROOT, environment

README = (ROOT / "README.md").read_text()
NOT_RUN = {
    "make demo": "installs .venv; what it then runs is `train --name here`, which is run",
    "make test": "this test is a part of it",
    "ray job submit --working-dir . -- python recipes/dlrm_movielens.py train --storage s3://bucket/runs": (
        "needs a cluster and a bucket; test_cluster.py submits a job, test_storage.py stores on S3"
    ),
}
"""The only commands that this file does not run, and why."""


def commands() -> list[str]:
    """The indented lines, in order, less the blocks between fences and the comments behind commands."""
    outside = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
    return [re.sub(r"\s+# .*", "", line).strip() for line in re.findall(r"^ {4}(\S.*)$", outside, flags=re.MULTILINE)]


def recipes_of(command: str) -> Iterator[tuple[str, list[str]]]:
    """Recipe and words behind it, of a command that starts one of the repository's."""
    words = shlex.split(command)
    for at, word in enumerate(words):
        if word.startswith("recipes/"):
            yield word, words[at + 1 :]


def test_the_list_of_what_is_not_run_is_of_the_readme() -> None:
    assert NOT_RUN.keys() <= set(commands())
    assert len(commands()) - len(NOT_RUN) >= 14, "the blocks are no longer found"


def test_each_run_of_the_readme_has_a_name_of_its_own() -> None:
    names = [
        re.search(r"--name (\S+)", command) for command in commands() if command not in NOT_RUN and " train " in command
    ]
    assert all(names) and len({found[1] for found in names if found}) == len(names)


@pytest.mark.parametrize("command", [c for c in commands() if "recipes/" in c])
def test_its_options_make_a_legal_run(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    ((recipe, words),) = recipes_of(command)
    functions = run_path(str(ROOT / recipe), run_name="recipe")
    verb, *options = words
    assert verb in VERBS
    if "--launcher" in options:  # `config` does not take it
        at = options.index("--launcher")
        assert options[at + 1] in LAUNCHERS
        del options[at : at + 2]
    with pytest.raises(SystemExit) as ended:
        cli.main(functions["run"], functions["debug"], arguments=["config", "--json", *options])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    check(config.from_dict(json.loads(said.out)))  # refuses what no machine would make legal


def test_every_file_that_it_names_is_there() -> None:
    linked = {target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target}
    typed = set(re.findall(r"\b(?:recipes|notebooks|docs|cluster|tests)/[\w./-]+\w", README))
    assert len(linked) >= 8
    missing = [path for path in linked | typed if not (ROOT / path).exists()]
    assert not missing


def test_the_first_sentence_is_short() -> None:
    first = README.split("\n\n")[1]
    assert first.endswith(".") and first.count(". ") == 0
    assert len(first.split()) <= 25


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_every_command_runs_as_it_stands(tmp_path: Path, ray_temp_dir: str) -> None:
    checkout = tmp_path / "rtrain"
    left = shutil.ignore_patterns(".*", "runs", "__pycache__", "build", "*.egg-info")
    shutil.copytree(ROOT, checkout, ignore=left)
    before = {path: path.read_bytes() for path in checkout.rglob("*.py")}
    env = environment(ray_temp_dir) | {
        "PYTHONPATH": str(checkout),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    ran = 0
    for command in commands():
        if command in NOT_RUN:
            continue
        done = subprocess.run(
            ["bash", "-c", command], cwd=checkout, env=env, capture_output=True, text=True, timeout=400
        )
        said = f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        assert done.returncode == 0, said
        assert "Traceback" not in done.stderr + done.stdout, said
        ran += 1
    assert ran == len(commands()) - len(NOT_RUN)
    assert all(path.read_bytes() == text for path, text in before.items()), "a command changed a file of the repository"
    names = {match[1] for match in re.finditer(r"--name (\S+)", "\n".join(c for c in commands() if c not in NOT_RUN))}
    assert {path.name for path in (checkout / "runs").iterdir()} == names, "a command wrote over another's run"
