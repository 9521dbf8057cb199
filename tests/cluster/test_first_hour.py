"""The first hour of somebody new, with their mistakes: no traceback, and no result is overwritten.

The README's commands are run by test_readme.py, the notebook by test_notebook.py; this is what lies between them.
"""

import hashlib
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import ROOT, environment, free_port, last_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Newcomer:
    """Types commands into a clone of the repository."""

    def __init__(self, folder: Path, ray_temp_dir: str):
        self.folder = folder
        self.env = environment(ray_temp_dir) | {
            "PYTHONPATH": str(folder),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def types(self, command: str, *, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command; whatever it ends with, nobody is shown a traceback."""
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=300
        )
        said = f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        assert done.returncode == code, said
        assert "Traceback" not in done.stdout + done.stderr, said
        return done

    def errs(self, command: str, message: str) -> None:
        """Make a mistake: one line says what was wrong, and nothing that was there changes."""
        before = self.kept()
        done = self.types(command, code=2)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and message in lines[0], f"{command}\n{done.stderr[-2000:]}"
        assert done.stdout == ""
        assert before.items() <= self.kept().items(), f"{command} changed a file"

    def kept(self) -> dict[str, str]:
        """Every file of the clone but caches, by its content."""
        files = (p for p in self.folder.rglob("*") if p.is_file() and not {".git", "__pycache__"} & set(p.parts))
        return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory, ray_temp_dir: str) -> Iterator[Newcomer]:
    """In a clone: what is not committed is not there."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout, so nobody can clone it")
    folder = tmp_path_factory.mktemp("hour") / "rtrain"
    subprocess.run(["git", "clone", "-q", "--no-local", str(ROOT), str(folder)], check=True, timeout=120)
    yield Newcomer(folder, ray_temp_dir)


def orders(folder: Path) -> None:
    """A shop's export as it comes: newest first, words, gaps, a column of free text."""
    draw, at = random.Random(0), 1_700_000_000
    lines = ["customerId,sku,price,channel,remark,bought,created_at"]
    for number in range(1500):
        at -= draw.randrange(100)
        who, what = draw.randrange(30), draw.randrange(20)
        price = "" if number % 11 == 0 else f"{5 + what / 3:.2f}"
        bought = int(draw.random() < (0.8 if who % 2 == what % 2 else 0.2))
        lines.append(f"c{who},{what},{price},{draw.choice(['web', 'app', ''])},remark {number},{bought},{at}")
    (folder / "orders.csv").write_text("\n".join(lines) + "\n")


def test_demo_report_and_the_same_name_again(newcomer: Newcomer) -> None:
    told = newcomer.types("make -n demo").stdout
    assert "recipes/dlrm_movielens.py train --json" in told
    newcomer.types("rtrain --help")
    demo = f"python recipes/dlrm_movielens.py train --json --duration.steps 40 --handoff.port {free_port()}"
    first = newcomer.types(demo)
    result = last_json(first.stdout)
    assert result["served"] is True
    page = newcomer.folder / newcomer.types("rtrain report runs/dlrm-movielens").stdout.strip()
    assert page == newcomer.folder / "runs" / "dlrm-movielens" / "report.html"
    assert page.read_text().lower().startswith("<!doctype html>")

    before = newcomer.kept()
    again = newcomer.types(demo)
    assert "finished already" in again.stderr and last_json(again.stdout) == result
    assert newcomer.kept() == before
    newcomer.errs(f"{demo} --optim.lr 1".replace(" --json", ""), "--name dlrm-movielens-2")
    fresh = newcomer.types("python recipes/dlrm_movielens.py train --json --debug --launcher inline --fresh")
    assert last_json(fresh.stdout)["run"] == "dlrm-movielens-debug"
    foreign = [line for line in fresh.stderr.splitlines() if not line.startswith("dlrm-movielens-debug: ")]
    assert not foreign, "a run's terminal is the run's"
    newcomer.types("python recipes/dlrm_movielens.py train --debug --launcher inline --fresh")
    assert (newcomer.folder / "runs" / "dlrm-movielens-debug~1" / "result.json").exists(), "moved aside, not deleted"


def test_own_csv_to_a_trained_model(newcomer: Newcomer) -> None:
    orders(newcomer.folder)
    made = last_json(newcomer.types("rtrain init orders.csv --out shop.py --json").stdout)
    assert (made["label"], made["time"]) == ("bought", "created_at")
    assert made["features"] == {"customerId": "Id", "sku": "Id", "price": "Dense", "channel": "Id"}
    assert made["left_out"].keys() == {"remark"}
    newcomer.types("python shop.py plan")
    train = "python shop.py train --launcher inline --parallel.dense ddp"
    result = last_json(newcomer.types(f"{train} --json").stdout)
    # Who buys what was drawn with chances of 0.8 and 0.2, by a rule that the ids alone tell: the best AUC is 0.8.
    assert 0.6 < result["test"]["auc"] < 0.9
    newcomer.errs("rtrain init orders.csv --out shop.py", "shop.py is there already and stays as it is")
    newcomer.errs("rtrain init orders.csv --out other.py", "orders.parquet is there already and stays as it is")
    newcomer.errs("rtrain init orders.csv --out other.py --label pric", "did you mean 'price'?")

    recipe = newcomer.folder / "shop.py"
    text = recipe.read_text()
    mistakes = [
        ('name="price"', 'name="prise"', "column 'prise' is missing; did you mean 'price'?"),
        ("rows=20", "rows=10", "but table 'sku' has rows=10 (valid 0..9)"),
        ('Dense(name="price"', 'Dense(name="channel2"', "column 'channel2' is missing; did you mean 'channel'?"),
        ('time="created_at"', 'time="created"', "the time column 'created' (schema.time) is missing"),
        ("orders.parquet", "order.parquet", "order.parquet: no such file or folder. Check data.source"),
        ("AdamW(lr=2e-3)", "AdamW(lr=-1.0)", "optim.lr: must be "),
    ]
    for number, (wrong, right, message) in enumerate(mistakes):
        assert wrong in text
        recipe.write_text(text.replace(wrong, right, 1))
        newcomer.errs(f"{train} --name mistaken-{number}", message)
    recipe.write_text(text)
    assert not list(newcomer.folder.glob("runs/mistaken-*/result.json"))


def test_a_mistake_of_each_other_kind(newcomer: Newcomer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (newcomer.folder / "half.py").write_text("from rtrain import main\ndef run(:\n")
        (newcomer.folder / "text.csv").write_text("a,b\n1,2\n3\n")
        for command, message in [
            ("python recipes/dlrm_movielens.py trian", "unknown verb 'trian'; did you mean 'train'?"),
            ("python recipes/dlrm_movielens.py train --optim.lrr 1", "did you mean 'lr'?"),
            (
                "python recipes/dlrm_movielens.py train --duration.epochs many",
                "duration.epochs: expected int | none, got 'many' (str)",
            ),
            ("python recipes/dlrm_movielens.py plan --fresh", "--fresh: plan does not take it"),
            ("rtrain train recipes/dlrm.py", "there is no recipe 'recipes/dlrm.py'"),
            ("rtrain train half.py", "half.py:2 is not Python"),
            ("rtrain report runs/nothing", "there is no run in 'runs/nothing'"),
            ("rtrain serve runs/nothing", "there is no export in 'runs/nothing'"),
            ("rtrain init text.csv", "text.csv: cannot be read"),
            ("rtrain init orders.txt", "orders.txt: no such file or folder"),
            ("rtrain data get movielens", "there is no data set 'movielens'"),
            (
                f"python recipes/dlrm_movielens.py train --name port --handoff.port {port}",
                f"handoff.port: {port} on 127.0.0.1 cannot be used",
            ),
        ]:
            newcomer.errs(command, message)
