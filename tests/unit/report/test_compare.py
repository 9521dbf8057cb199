"""Runs beside each other."""

import json
import re

import numpy as np
import pytest

from rtrain.errors import UserError
from rtrain.evaluation.rows import TEST_ROWS, Kept, keep
from rtrain.metrics.state import Scored
from rtrain.report.compare import compare, spell_differences, write_compare
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
    assert [note for note in found["notes"] if "test_rows" not in note] == []
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


def keep_rows(made, logits, labels, groups):
    rows = Scored(logits, labels, groups, np.arange(len(logits)))
    kept = Kept({"": ("Scored", keep(rows, 1.0, grouped=True))}, 1.0, True)
    (made.path / TEST_ROWS).write_bytes(kept.to_parquet(first=0))


@pytest.fixture
def scored_pair(pair):
    """Of the same rows; the second run's scores know far more of the labels."""
    random = np.random.default_rng(0)
    labels, groups = (random.random(900) < 0.4).astype(np.float64), random.integers(0, 90, 900)
    keep_rows(pair[0], random.normal(size=900) + 0.2 * labels, labels, groups)
    keep_rows(pair[1], random.normal(size=900) + 2 * labels, labels, groups)
    return pair, labels, groups


def test_differences_on_the_same_rows_have_an_interval(scored_pair, tmp_path):
    pair, *_ = scored_pair
    found = compare(folders(*pair))
    told = {row["name"]: row["intervals"] for row in found["metrics"]}
    assert told["auc"][0] is None and told["auc"][1]["excludes_0"]
    assert 0.2 < told["auc"][1]["low"] < told["auc"][1]["high"] < 0.5
    assert told["ndcg@10"][1] and told["log_loss"][1] and told["new"] == [None, None]
    assert found["notes"] == [] and compare(folders(*pair)) == found
    # Rows that were held against each other are the same, whatever the data are called.
    run = json.loads((pair[1].path / "run.json").read_text())
    pair[1].put("run.json", run | {"data": {"source": "elsewhere"}})
    assert compare(folders(*pair))["notes"] == []
    pair[1].put("run.json", run)
    json.dumps(found)
    said = spell_differences(found)
    assert re.search(r"auc +faster - dlrm-movielens: \+0.0100  95 % \[\+0.3\d+, \+0.4\d+\], not 0", said)
    out = write_compare(folders(*pair), f"{tmp_path}/c.html", found)
    assert f"95 % [{told['auc'][1]['low']:+.4f}" in (tmp_path / "c.html").read_text() and out.endswith("c.html")


def test_another_test_split_is_a_note_and_no_interval(scored_pair):
    pair, labels, groups = scored_pair
    keep_rows(pair[1], labels, 1 - labels, groups)
    found = compare(folders(*pair))
    assert all(row["intervals"] == [None, None] for row in found["metrics"])
    assert found["notes"] == [
        "dlrm-movielens and faster were not scored on the same rows of the test split: their differences have no "
        "interval. Train both on the same data and split"
    ]
    (pair[1].path / TEST_ROWS).write_bytes(b"spoilt")
    assert "faster: test_rows.parquet cannot be read" in compare(folders(*pair))["notes"][0]


def told_of_code(pair):
    return [note for note in compare(folders(*pair))["notes"] if "code" in note]


def test_runs_of_other_code_are_told(pair):
    tree = {"root": "/shop", "commit": "0123456789abcdef", "branch": "main", "changes": "", "diff": None}
    first, second = ({"starts": [{"code": {"recipe": t, "rtrain": t}}]} for t in (tree, tree))
    pair[0].put("manifest.json", first)
    assert told_of_code(pair) == []  # nothing is known of the other's
    pair[1].put("manifest.json", second)
    assert told_of_code(pair) == []
    changed = tree | {"changes": "ab12", "diff": "manifest/ab.diff"}
    pair[1].put("manifest.json", {"starts": [{"code": {"recipe": changed, "rtrain": tree}}]})
    (note,) = told_of_code(pair)
    assert note.startswith("The runs are not of the same code. ") and "recipe at 0123456789ab (main); " in note
    assert note.endswith("recipe at 0123456789ab (main) with changes (manifest/ab.diff).")
