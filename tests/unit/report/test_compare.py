"""Runs beside each other."""

import json
import re

import pytest

from rtrain.errors import UserError
from rtrain.report.compare import compare, write_compare
from tests.unit.report.conftest import Made


@pytest.fixture
def pair(made, tmp_path):
    """A run, and one with another rate that is better in AUC, worse in log loss and equal in NDCG."""
    other = Made(tmp_path / "faster")
    tree = json.loads((other.path / "run.json").read_text())
    other.put("run.json", tree | {"name": "faster", "optim": tree["optim"] | {"lr": 0.003}, "secret": "hunter2"})
    other.change("result.json", run="faster", test={"auc": 0.7634, "log_loss": 0.6051, "ndcg@10": 0.7894, "new": 1.0})
    return made, other


def folders(*runs):
    return [str(run.path) for run in runs]


def test_each_metric_is_judged_in_its_own_direction(pair):
    found = compare(folders(*pair))
    assert [run["name"] for run in found["runs"]] == ["dlrm-movielens", "faster"]
    rows = {row["name"]: row for row in found["metrics"]}
    assert {name: row["best"] for name, row in rows.items()} == {"auc": 1, "log_loss": 0, "ndcg@10": None, "new": None}
    assert rows["auc"]["differences"] == [0.0, pytest.approx(0.01)]
    assert rows["log_loss"]["differences"] == [0.0, pytest.approx(0.01)]
    assert rows["new"]["values"] == [None, 1.0] and rows["new"]["differences"] == [None, None]
    json.dumps(found)


def test_only_what_differs_is_listed_and_secrets_are_masked(pair):
    found = compare(folders(*pair))
    assert found["config"] == [
        {"key": "optim.lr", "values": [0.001, 0.003]},
        {"key": "secret", "values": ["(absent)", "***"]},
    ]
    assert found["notes"] == []
    pair[1].put("run.json", json.loads((pair[0].path / "run.json").read_text()) | {"data": {"source": "ml-1m"}})
    assert "The runs differ in their data (data.$type, data.source" in compare(folders(*pair))["notes"][0]


def test_the_page_shows_them_over_each_other_and_needs_nothing_else(pair, tmp_path):
    out = f"{tmp_path}/pages/compare.html"
    assert write_compare(folders(*pair), out) == out
    html = (tmp_path / "pages" / "compare.html").read_text()
    assert "hunter2" not in html and not re.search(r'(src|href)="(?!#|data:,)|@import', html)
    figures = re.findall(r"<svg .*?</svg>", html, flags=re.DOTALL)
    assert len(figures) == 7
    for figure in figures:
        assert "var(--c1)" in figure and "var(--c2)" in figure
        assert "&#34;name&#34;:&#34;faster&#34;" in figure
    text = " ".join(re.sub(r"<[^>]+>", " ", html[html.index("<main>") :]).split())
    assert "AUC 0.7534 +0.0100 0.7634 best" in text and "log loss 0.5951 best +0.0100 0.6051" in text
    assert "optim.lr 0.001 0.003" in text


def test_a_run_that_goes_on_and_one_of_an_older_version(pair, tmp_path):
    pair[0].older()
    (pair[1].path / "result.json").unlink()
    write_compare(folders(*pair), f"{tmp_path}/compare.html")
    html = (tmp_path / "compare.html").read_text()
    assert "not finished" in html and "faster: result.json is not there." in html
    assert all(row["best"] is None for row in compare(folders(*pair))["metrics"])


def test_runs_of_one_name_are_told_apart(made):
    names = [run["name"] for run in compare(folders(made, made))["runs"]]
    assert names == ["dlrm-movielens (1)", "dlrm-movielens (2)"]


def test_too_few_runs_and_folders_without_one_are_refused(made, tmp_path):
    with pytest.raises(UserError, match=r"compare: 1 run given, two or more are needed\. Give the folders"):
        compare(folders(made))
    with pytest.raises(UserError, match="there is no run in"):
        write_compare([str(made.path), str(tmp_path / "nothing")], str(tmp_path / "c.html"))
    assert not (tmp_path / "c.html").exists()
