"""The page of a run: what it shows, what it says when something is missing, that it needs nothing else."""

import json
import random
import re
import uuid
from html.parser import HTMLParser
from itertools import product
from typing import get_args

import fsspec
import pytest

from rtrain.errors import UserError
from rtrain.metrics import ScoredMetric
from rtrain.metrics.language import Perplexity, TokenLoss
from rtrain.report import curve, write_report
from rtrain.report.figures import POINTS, smooth, thin
from rtrain.report.words import is_better, number, spell_bytes, spell_name, spell_seconds

SECTIONS = (
    "headline", "curves", "metrics", "scores", "step-time", "placement", "memory", "events", "surroundings", "repeat",
    "config",
)  # fmt: skip


class Page(HTMLParser):
    """The tags, ids and texts of a page, by section."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.ids, self.where, self.texts, self.open = [], [], "", {}, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs, self.where))
        if tag in ("header", "section"):
            self.where = attrs.get("id", "")
        self.ids += [attrs["id"]] if "id" in attrs else []

    def handle_endtag(self, tag):
        if tag in ("header", "section"):
            self.where = ""

    def handle_data(self, data):
        self.texts[self.where] = self.texts.get(self.where, "") + " " + data

    def text(self, section):
        return " ".join(self.texts.get(section, "").split())

    def count(self, tag, section):
        return sum(1 for t, _, where in self.tags if t == tag and where == section)


def page_of(made):
    path = write_report(str(made.path))
    assert path == f"{made.path}/report.html"
    return Page((made.path / "report.html").read_text())


def test_every_baseline_stands_beside_the_model(made):
    sure, unsure = ({"low": 0.01, "high": 0.03, "excludes_0": True}, {"low": -0.02, "high": 0.01, "excludes_0": False})
    made.change(
        "result.json",
        baselines=[
            {"name": "two means", "test": {"auc": 0.7312, "ndcg@10": 0.7911, "auc[gender=F]": 0.7},
             "intervals": {"auc": sure, "ndcg@10": unsure}},
            {"name": "trees", "test": {"auc": 0.7634}, "intervals": {}},
            {"name": "random order", "test": {"ndcg@10": 0.639}, "intervals": {}},
        ],
    )  # fmt: skip
    page = page_of(made)
    assert "A better AUC reaches: trees (0.7634)." in page.text("headline")
    shown = page.text("metrics")
    assert "metric model two means trees random order" in shown
    assert "AUC 0.7534 0.7312 +0.0222 95 % [+0.0100, +0.0300], not 0 0.7634 -0.0100 \N{EN DASH} NDCG@10" in shown
    assert "NDCG@10 0.7894 0.7911 -0.0017 95 % [-0.0200, +0.0100], may be 0 \N{EN DASH} 0.6390 +0.1504" in shown
    assert "beside all baselines" in shown and "gender" not in shown.partition("beside all baselines")[2]


def test_a_finished_run_shows_everything(made):
    page = page_of(made)
    assert [i for i in page.ids if i in SECTIONS] == list(SECTIONS)
    assert page.text("headline").startswith(
        "dlrm-movielens finished AUC is 0.7534 on the test split, 0.0222 better than the baseline "
        "(user and item means alone). The baseline is better in NDCG@10 (0.7911 against 0.7894). "
        "The answers of Ray Serve equal the trainer's predictions (largest difference 6.0e-08)."
    )
    for words in (
        "steps 780 best at 600",
        "world size 2 data 2",
        "duration 1 min 11 s 2 attempts",
        "examples/s 22,840",
    ):
        assert words in page.text("headline")
    captions = [
        "Training and validation loss", "Validation AUC", "Validation log loss", "Validation NDCG@10",
        "Examples per second", "Learning rate", "Gradient norm",
    ]  # fmt: skip
    assert page.count("svg", "curves") == page.count("figure", "curves") == len(captions)
    assert all(caption in page.text("curves") for caption in captions)
    assert "dotted: resumed" in page.text("curves")
    assert "best 0.7577 at step 600; dashed: baseline 0.7287" in page.text("curves")
    assert "best 0.8001 at step 600" in page.text("curves")
    assert page.count("svg", "scores") == 3 and "ROC" in page.text("scores")
    assert "build data, model, embedding tables and checkpoint, before the first step 11 % 8.0 s" in page.text(
        "step-time"
    )
    assert "rest what no part of the run accounts for 1.4 % 1.0 s" in page.text("step-time")
    assert page.text("surroundings") == (
        "Trained with commit 0123456789ab+changes data, by their fingerprint 89abcdef01234567 "
        "versions rtrain 0.1.0, python 3.11.7, torch 2.13.0 "
        "127.0.0.1 2 cores of AMD EPYC, 23.5 GiB of memory, 2 x H100"
    )
    assert "AUC decides 0.7534 0.7312 +0.0222 better 0.7577 0.7287" in page.text("metrics")
    assert "log loss 0.5951 0.6108 -0.0157 better" in page.text("metrics")
    assert "NDCG@10 0.7894 0.7911 -0.0017 worse" in page.text("metrics")
    assert "communication collectives under way inside the other phases 23 % 4.2 s" in page.text("step-time")
    assert "item_id 1,683 16 105.2 KiB row-wise 0, 1 fused item_id, history" in page.text("placement")
    assert "rank 0 127.0.0.1 · cpu · data 0 item_id user_id 84.3 KiB" in page.text("placement")
    assert "0 84.3 KiB 5.3 KiB 36.5 KiB 24.3 KiB 24.3 KiB 174.7 KiB 870.1 MiB" in page.text("memory")
    assert "step 400 attempt 2: goes on from step 400 2026-11-23 11:41:31 UTC" in page.text("events")
    assert "optim.lr = 0.001" in page.texts["config"].splitlines()
    assert not [a for _, a, _ in page.tags if a.get("class") == "missing"]


def test_it_needs_nothing_else_and_no_id_is_there_twice(made):
    page = page_of(made)
    html = (made.path / "report.html").read_text()
    for tag, attrs, _ in page.tags:
        assert tag not in ("iframe", "img", "object", "embed", "base"), tag
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert attrs.get(name, "#").startswith(("#", "data:,")), (tag, attrs)
    assert not re.search(r"@import|url\((?!#)", html)
    assert "default-src 'none'" in html
    assert len(page.ids) == len(set(page.ids))
    assert len(html) < 250_000


def test_block_widths_are_bytes(made):
    page = page_of(made)
    widths = [float(a["style"][6:-1]) for t, a, w in page.tags if t == "i" and w == "placement"]
    assert len(widths) == 12
    assert sum(widths[:6]) == pytest.approx(100, abs=0.01) and widths[0] == pytest.approx(100 * 842 / 1349, abs=0.001)
    shares = [float(a["style"][6:-1]) for t, a, w in page.tags if t == "i" and w == "step-time"]
    assert len(shares) == 9 + 6 and sum(shares[:9]) == pytest.approx(100, abs=0.01) == sum(shares[9:])


def test_a_run_of_an_older_version_has_a_page_without_empty_boxes(made):
    made.older()
    page = page_of(made)
    assert [i for i in page.ids if i in SECTIONS] == [s for s in SECTIONS if s not in ("scores", "surroundings")]
    assert page.text("step-time").startswith("Where the time goes The loop 18 s")
    assert not [a for _, a, _ in page.tags if a.get("class") == "missing"]


def test_words_of_a_panel_stand_outside_its_lines(made):
    """No text inside a figure but the axes' own: each stands beside the frame of the curves."""
    write_report(str(made.path))
    html = (made.path / "report.html").read_text()
    for figure in re.findall(r"<svg .*?</svg>", html, flags=re.DOTALL):
        for text in re.findall(r"<text [^>]*>(.*?)</text>", figure, flags=re.DOTALL):
            assert re.fullmatch(
                r"[\d.\u2212k %e-]+|step|false positive rate|mean prediction|predicted probability", text
            )


def test_each_panel_marks_its_own_best_and_rings_the_chosen_step(made):
    lines = [{"kind": "valid", "step": s, "auc": a, "log_loss": b} for s, a, b in ((1, 0.6, 0.5), (2, 0.7, 0.6))]
    figure = curve(lines, best_step=2)
    assert [ax.get_title(loc="left") for ax in figure.axes[1:]] == [
        "validation AUC: best 0.7000 at step 2", "validation log loss: best 0.5000 at step 1",
    ]  # fmt: skip
    marks = [[line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 1] for ax in figure.axes[1:]]
    assert marks == [[2, 2], [1, 2]]


def test_values_of_the_curves_are_there_to_point_at(made):
    page = page_of(made)
    readings = [json.loads(a["data-readings"]) for t, a, w in page.tags if t == "svg" and "data-readings" in a]
    assert [[line["name"] for line in panel] for panel in readings] == [
        ["training", "validation"], ["AUC"], ["log loss"], ["NDCG@10"], ["examples/s"], ["learning rate"], ["norm"],
        ["true positive rate"], ["share of positives"], ["label 0", "label 1"],
    ]  # fmt: skip
    steps = [float(x) for x in (point[2] for point in readings[1][0]["points"])]
    values = [float(y) for y in (point[3] for point in readings[1][0]["points"])]
    valid = [line for line in made.history if line["kind"] == "valid"]
    assert steps == [line["step"] for line in valid]
    assert values == pytest.approx([line["auc"] for line in valid], abs=5e-5)
    assert readings[9][1]["points"][0][2:] == ["0.18", "13.3 % of its rows"]


def test_the_pictures_of_splits_follow_the_offsets(made):
    made.change("placement.json", tables=[{
        "table": "t", "rows": 100, "dim": 8, "features": ["t"], "sharding": "column_wise", "kernel": "fused",
        "bytes": 3200, "shards": [
            {"rank": 0, "offsets": [0, 0], "sizes": [100, 4], "bytes": 1600},
            {"rank": 1, "offsets": [0, 4], "sizes": [100, 4], "bytes": 1600},
        ],
    }])  # fmt: skip
    page = page_of(made)
    rects = [(a["x"], a["y"], a["width"], a["height"]) for t, a, w in page.tags if t == "rect" and w == "placement"]
    assert rects == [("0.0", "0.0", "50.0", "60.0"), ("50.0", "0.0", "50.0", "60.0")]
    tips = [a["title"] for t, a, w in page.tags if t == "i" and w == "placement"]
    assert tips[1] == "t: rows 0 to 99, columns 4 to 7, 1.6 KiB"


def test_many_ranks_are_cut_off_and_counted(made, make_placement):
    made.put("placement.json", make_placement(80))
    text = page_of(made).text("placement")
    assert "and 16 ranks more" in text and "rank 63" in text and "rank 64" not in text and "0 to 79" in text


def test_text_is_escaped(made):
    evil = "<script>alert(1)</script>&\"'"
    tree = json.loads((made.path / "run.json").read_text())
    made.put("run.json", tree | {"name": evil, "note": evil, evil: 1})
    made.change("result.json", run=evil, command=evil, stop=evil, test={"auc": 0.7, evil: 0.5}, breakdown={evil: 1.0})
    table = json.loads((made.path / "placement.json").read_text())["tables"][0]
    made.change("placement.json", tables=[table | {"table": evil, "features": [evil]}])
    made.put(
        "history.jsonl",
        [*made.history, {"kind": "event", "step": 780, "text": evil}, {"kind": "valid", "step": 9, evil: 1.0}],
    )
    page = page_of(made)
    html = (made.path / "report.html").read_text()
    assert "<script>alert" not in html
    assert sum(1 for tag, _, _ in page.tags if tag == "script") == 1
    for section in ("headline", "metrics", "step-time", "placement", "events", "repeat", "config", "curves"):
        assert "alert(1)" in page.text(section), section


def test_secrets_are_masked(made):
    html = (made.path / "report.html").read_text() if write_report(str(made.path)) else ""
    assert "hunter2" not in html
    assert "s3://AKIA:***@bucket/runs" in html and "--data.token" in html


FILES = ("run.json", "history.jsonl", "placement.json", "result.json", "curves.json")
HOW = ("missing", "cut", "empty", "list", "other")


@pytest.mark.parametrize(
    ("name", "how"),
    # Each file and each way always once; the rest as the day draws.
    [
        pytest.param(name, how, marks=[pytest.mark.slow] * (i != j))
        for (i, name), (j, how) in product(enumerate(FILES), enumerate(HOW))
    ],
)
def test_a_file_that_is_missing_or_broken_costs_only_its_sections(made, name, how):
    file = made.path / name
    text = file.read_text()
    if how == "missing":
        file.unlink()
    else:
        file.write_text({"cut": text[: len(text) // 2], "empty": "", "list": "[1, 2]", "other": '{"tables": 3}'}[how])
    page = page_of(made)
    gone = {"scores"} if (name, how) == ("curves.json", "missing") else set()
    assert [i for i in page.ids if i in SECTIONS] == [s for s in SECTIONS if s not in gone]
    told = [where for _, a, where in page.tags if a.get("class") == "missing"]
    hurt = {
        "run.json": {"config"}, "history.jsonl": {"curves", "events"}, "placement.json": {"placement"},
        "result.json": {"metrics", "step-time"}, "curves.json": {"scores"},
    }[name]  # fmt: skip
    if not gone and (name, how) not in {("history.jsonl", "cut"), ("run.json", "other")}:
        assert hurt <= set(told)
    if how == "missing" and not gone:
        assert all(f"{name} is not there" in page.text(section) for section in hurt)
    if (name, how) == ("history.jsonl", "cut"):
        assert "history.jsonl: 1 line cannot be read and is left out" in page.text("curves")


def test_every_field_may_be_missing_or_of_another_kind(made, seed):
    """Each key of each file taken away or replaced: there is always a page. A seed draws in which way."""
    draw = random.Random(seed)
    made.put("history.jsonl", made.history[:1])
    for name in ("run.json", "placement.json", "result.json", "curves.json", "surroundings.json"):
        tree = json.loads((made.path / name).read_text())
        for key in tree:
            ways = (
                {k: v for k, v in tree.items() if k != key},
                tree | {key: None},
                tree | {key: "x"},
                tree | {key: [7]},
            )
            for value in [draw.choice(ways)] if seed else ways:
                made.put(name, value)
                page = page_of(made)
                assert "dlrm-movielens" in page.text("headline") or (name, key) in {
                    ("result.json", "run"),
                    ("run.json", "name"),
                }
        made.put(name, tree)


def test_a_run_that_goes_on_is_shown_as_such(made):
    (made.path / "result.json").unlink()
    made.put("history.jsonl", made.history[:40])
    page = page_of(made)
    text = page.text("headline")
    assert "dlrm-movielens not finished There is no result.json. Its last sign of life was " in text
    assert (
        "before this page was written. It is still going, or it failed; the same command resumes it by its name."
        in text
    )
    assert "steps 370 of 780" in text and "at the last point" in text
    assert "rtrain.train(run, fresh=True)" in page.text("repeat")
    assert "No failure and no resume." in page.text("events")


def test_a_run_that_was_refused_shows_why(made):
    (made.path / "result.json").unlink()
    made.put("refused.json", {"kind": "DataError", "text": "batch 12: feature 'c1' has id 39060"})
    assert "dlrm-movielens failed batch 12: feature 'c1' has id 39060" in page_of(made).text("headline")


def test_answers_that_differ_are_the_headline(made):
    made.change("result.json", served=False, served_max_difference=0.02, stop="no better auc in 3 evaluations")
    text = page_of(made).text("headline")
    assert "finished, not to be served" in text and "the export must not be used" in text
    made.change("result.json", served=None)
    text = page_of(made).text("headline")
    assert "served – not checked" in text  # noqa: RUF001
    assert "Training stopped early: no better auc in 3 evaluations." in text


def test_a_folder_without_a_run_is_refused_and_left_alone(tmp_path):
    with pytest.raises(UserError, match="there is no run in .*Give a run's own folder"):
        write_report(str(tmp_path / "nothing"))
    assert not list(tmp_path.iterdir())


def test_any_storage(made):
    uri = f"memory://{uuid.uuid4().hex}/dlrm-movielens"
    memory = fsspec.filesystem("memory")
    for file in made.path.iterdir():
        memory.pipe_file(f"{uri}/{file.name}", file.read_bytes())
    assert write_report(uri) == f"{uri}/report.html"
    assert b"0.7534" in memory.cat_file(f"{uri}/report.html")
    memory.rm(uri, recursive=True)


def test_writing_again_leaves_no_other_file(made):
    before = {p.name for p in made.path.iterdir()}
    page_of(made)
    page_of(made)
    assert {p.name for p in made.path.iterdir()} - before == {"report.html"}


def test_curve_is_a_figure_that_a_notebook_shows(made):
    figure = curve(made.history, best_step=600)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == [
        "training loss", "validation AUC: best 0.7577 at step 600", "validation log loss: best 0.5945 at step 600",
        "validation NDCG@10: best 0.8001 at step 600",
    ]  # fmt: skip
    assert len(figure.axes[0].lines[0].get_xdata()) == 78
    picture, size = figure._repr_png_()
    assert picture.startswith(b"\x89PNG") and size["width"] == 1260


def test_curve_of_a_run_that_has_hardly_begun(made):
    for lines in ([], made.history[:1], made.history[:2], [{"kind": "train", "step": 1, "loss": None}]):
        assert curve(lines)._repr_png_()[0].startswith(b"\x89PNG")


def test_long_curves_are_thinned_and_smoothing_does_not_drag():
    import numpy as np

    long = np.arange(100_000, dtype=np.float64)
    assert len(thin(long)) == POINTS and thin(long).mean() == pytest.approx(long.mean(), rel=1e-2)
    assert smooth(np.full(50, 3.0)) == pytest.approx(np.full(50, 3.0))
    assert smooth(np.array([5.0, 1.0]))[0] == 5.0


METRICS = {m.name: m for m in (cls() for cls in (*get_args(ScoredMetric), TokenLoss, Perplexity))}


@pytest.mark.parametrize("label", ["", "like_", "error_", "win_loss_"])
@pytest.mark.parametrize("name", [*METRICS, "ndcg@100", "recall>=0.3"])
def test_better_is_what_the_metrics_class_says_of_any_label(name, label):
    up = METRICS[name].higher_is_better if name in METRICS else True
    low, high = (1.2, 0.99) if name == "calibration" else (0.4, 0.6) if up else (0.6, 0.4)
    assert is_better(label + name, high, low)
    assert not is_better(label + name, low, high)
    assert not is_better(label + name, low, low)


def test_words():
    assert [spell_bytes(n) for n in (192, 107_712, None, 3 * 1024**4)] == ["192 B", "105.2 KiB", "–", "3.0 TiB"]  # noqa: RUF001
    assert [spell_seconds(s) for s in (0.42, 1.04, 42.2, 71, 7800)] == [
        "0.42 s",
        "1.0 s",
        "42 s",
        "1 min 11 s",
        "2 h 10 min",
    ]
    assert [spell_name(n) for n in ("auc", "ndcg@10", "log_loss")] == ["AUC", "NDCG@10", "log loss"]
    assert [number(x) for x in (True, "1", float("nan"), None, 2)] == [None, None, None, None, 2.0]


def start_of(number, **changes):
    recipe = {
        "root": "/shop", "commit": "0123456789abcdef", "branch": "main", "changes": "", "cut": False, "untracked": 0,
        "why": "", "diff": None,
    }  # fmt: skip
    start = {
        "number": number, "at": f"2026-11-28T1{number}:00:00Z", "parent": None,
        "code": {"recipe": recipe | changes.pop("recipe", {}), "rtrain": changes.pop("rtrain", None)},
        "outcome": {"state": "failed", "step": 12, "reason": "rank 0: no route", "at": ""},
    }  # fmt: skip
    return start | changes


def test_how_it_came_about(made):
    fork = {"kind": "fork", "search": "runs/search", "number": 3, "run": "runs/search/trials/trial-2", "step": 40}
    changed = {"changes": "ab12", "diff": "manifest/ab.diff", "cut": True}
    own = {"root": "/rtrain", "commit": "fedcba9876543210", "branch": "", "changes": "", "untracked": 2}
    last = start_of(3, parent=fork, recipe=changed, rtrain=own, outcome=None)
    made.put("manifest.json", {"starts": [start_of(1, parent=fork), start_of(2, parent=fork), last]})
    page = page_of(made)
    assert page.text("origin") == (
        "How it came about made from a fork of runs/search/trials/trial-2, its number 3, at step 40 "
        "start 1 2026-11-28T11:00:00Z, failed at step 12: rank 0: no route; recipe at 0123456789ab (main) "
        "start 2 2026-11-28T12:00:00Z, failed at step 12: rank 0: no route; the code as before "
        "start 3 2026-11-28T13:00:00Z, finished at step 780; recipe at 0123456789ab (main) with changes "
        "(manifest/ab.diff, cut), rtrain at fedcba987654 beside 2 untracked"
    )
    made.change("result.json", served=False)
    assert "failed at step 780: the served answers differ" in page_of(made).text("origin")
    (made.path / "result.json").unlink()
    assert "start 3 2026-11-28T13:00:00Z, going on, or killed" in page_of(made).text("origin")
    made.put("manifest.json", {"starts": [start_of(n) for n in range(1, 16)]})
    assert "earlier starts 3, in manifest.json start 4" in page_of(made).text("origin")
    made.put("manifest.json", {"starts": [start_of(1, recipe={"commit": "", "why": "git is not installed"}), "x"]})
    assert "recipe of no commit (git is not installed)" in page_of(made).text("origin")


def test_a_manifest_of_another_shape_costs_its_section_alone(made):
    made.put("manifest.json", {"starts": [{"code": 3, "outcome": 4, "parent": "x"}]})
    page = page_of(made)
    assert "recipe of no commit (nothing is known of it)" in page.text("origin")
