"""`rtrain metrics online`: what it prints, what is refused, how much memory it takes, and Ctrl-C."""

import contextlib
import json
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtrain.cli import console
from rtrain.errors import ConfigError, DataError
from rtrain.evaluation.online import Columns, Events, measure_online, tally
from tests.unit.metrics.test_online import drawn, write

Capsys = pytest.CaptureFixture[str]
Command = Callable[..., object]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """`rtrain metrics online` on words; its exit code."""

    def call(*words: str) -> object:
        monkeypatch.setattr(sys, "argv", ["rtrain", "metrics", "online", *words])
        with pytest.raises(SystemExit) as ended:
            console()
        return ended.value.code

    return call


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A log whose tally takes some 600 MB: a million sessions of a view, a click and a purchase."""
    n = 3_000_000
    session = pa.array(np.arange(n) // 3).cast(pa.string())
    event = pa.array(np.array(["view", "click", "purchase"])[np.arange(n) % 3])
    long_ids = pa.compute.binary_join_element_wise(session, "0" * 60, "-")
    path = tmp_path_factory.mktemp("large") / "log.parquet"
    pq.write_table(pa.table({"session_id": long_ids, "event": event, "timestamp": np.arange(n)}), path)
    return str(path)


def test_little_memory_is_enough(large: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    told = measure_online(large, memory_gb=0.3)
    group = told["groups"][0]
    assert (told["sessions"], group["ctr"]["value"], group["conversion_rate"]["value"]) == (1_000_000, 1.0, 1.0)
    with pytest.raises(DataError, match="Out of Memory Error.*Raise --memory-gb"):
        measure_online(large, memory_gb=0.01)
    assert list(tmp_path.iterdir()) == []  # where it spilled


@pytest.mark.parametrize("dropped", [False, True])
def test_ctrl_c_ends_it_without_a_traceback(
    large: str, capsys: Capsys, command: Command, monkeypatch: pytest.MonkeyPatch, dropped: bool
) -> None:
    real = tally.sessions

    def told(columns: Columns) -> str:
        """Ctrl-C within the statement, or before it and dropped, as DuckDB was seen to do once."""
        if dropped:
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        else:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        return real(columns)

    monkeypatch.setattr(tally, "sessions", told)
    before = signal.getsignal(signal.SIGINT)
    assert command(large, "--memory-gb", "0.3") == 130
    assert signal.getsignal(signal.SIGINT) is before
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and err.startswith("interrupted")


def test_the_command_prints_a_table_or_json(tmp_path: Path, capsys: Capsys, command: Command) -> None:
    rows = [row | {"event": row["event"].replace("click", "a,b")} for row in drawn(20)]
    log = write(rows, tmp_path / "log.csv")
    words = (log, "--by", "variant,country", "--other", "scroll", "--click", 'tap, "a,b"', "--unit", "user_id")
    assert command(*words, "--json") == 0
    out = capsys.readouterr().out
    told = json.loads(out)
    columns = Columns(by=("variant", "country"), unit="user_id")
    assert out.count("\n") == 1
    assert told == measure_online(log, columns, Events(click=("tap", "a,b"), other=("scroll",)))
    assert command(*words) == 0
    title, empty, header, *lines = capsys.readouterr().out.splitlines()
    assert (title, empty) == (f"{log}: 600 events, {told['sessions']} sessions", "")
    assert header.split() == ["rate", "variant", "country", "value", "95", "%", "interval", "of", "which", "is"]
    of = told["groups"][0]["ctr"]
    fields = [f"{of['value']:.4g}", f"{of['low']:.4g} to {of['high']:.4g}", f"{of['numerator']} / {of['denominator']}"]
    assert re.split("  +", lines[0]) == ["ctr", "a", "de", *fields, "clicks / impressions"]
    assert re.split("  +", lines[2])[:3] == ["ctr", "a", "(none)"]
    starts = {
        (line[header.index("value") - 1], line[header.index("of") - 1], len(line) > header.index("of"))
        for line in lines[:48]
    }
    assert starts == {(" ", " ", True)}  # aligned


HEAD = "session_id,event,timestamp"
BAD = [
    (["{tmp}/none.csv"], "", "none.csv: no such file or folder"),
    (["{tmp}"], "", "no event log. Give .parquet, .csv"),
    (["{tmp}/log.txt"], "x", "log.txt: no event log. Give .parquet, .csv"),
    (["nope://x/log.csv"], "", "it cannot be read (Protocol not known: nope"),
    (["{tmp}/log.csv"], "", "there is no event in it"),
    (["{tmp}/log.jsonl"], "", "there is no event in it"),
    (["{tmp}/log.csv"], HEAD + "\n", "there is no event in it"),
    (
        ["{tmp}/log.csv"],
        "sesion_id,event,timestamp\n1,view,1\n",
        "column 'session_id' (--session) is missing; did you mean 'sesion_id'?",
    ),
    (
        ["{tmp}/log.csv"],
        "session_id,event,x\n1,view,1\n",
        "column 'timestamp' (--time) is missing. The columns are session_id, event, x",
    ),
    (
        ["{tmp}/log.jsonl"],
        '{"session_id": 1, "event": "view"}\n',
        "column 'timestamp' (--time) is missing. The columns are",
    ),
    (["{tmp}/log.csv", "--query", "q"], HEAD + "\n1,view,1\n", "column 'q' (--query) is missing. The col"),
    (
        ["{tmp}/log.csv", "--by", "variant,contry"],
        HEAD + ",variant,country\n1,view,1,a,de\n",
        "column 'contry' (--by) is missing; did you mean 'country'?",
    ),
    (["{tmp}/log.csv"], HEAD + "\n1,view,1\n,view,2\n", "1 of 2 events have no session (column 'session_id')"),
    (["{tmp}/log.csv"], HEAD + "\n1,view,1\n1,,2\n", "1 of 2 events have no event (column 'event')"),
    (["{tmp}/log.csv"], HEAD + "\n1,view,1\n1,view,\n1,click,\n", "2 of 3 events have no time (column 'timestamp')"),
    (["{tmp}/log.csv", "--unit", "user"], HEAD + ",user\n1,view,1,\n", "1 of 1 events have no unit (column 'user')"),
    (
        ["{tmp}/log.csv"],
        HEAD + "\n1,view,1\n1,clicked,2\n",
        "1 of 2 events are called 'clicked', which no option names; did you mean 'click'? Give each to one",
    ),
    (
        ["{tmp}/log.csv"],
        HEAD + "\n1,view,1\n1,view,yesterday\n",
        "it cannot be read (Conversion Error: Could not convert",
    ),
    (
        ["{tmp}/log.csv"],
        HEAD + ",results\n1,search,1,-1\n",
        "1 searches have results (column 'results') that are no number of at least 0",
    ),
    (
        ["{tmp}/log.csv"],
        HEAD + ",results\n1,search,1,many\n",
        "it cannot be read (Conversion Error: Could not convert string 'many' to DOUBLE)",
    ),
    (["{tmp}/log.csv"], HEAD + "\n1,view,1\n1,view,2,3\n", "it cannot be read ("),
    (
        ["{tmp}/log.jsonl"],
        '{"session_id": 1, "event": "view", "timestamp": 1}\n{',
        "it cannot be read (Invalid Input Error: Malformed JSON",
    ),
    (["{tmp}/log.jsonl"], "[1]\n", "it cannot be read (Invalid Input Error: JSON transform error"),
    (["{tmp}/log.parquet"], "PAR1 not", "it cannot be read ("),
    (["{tmp}/log.csv", "--by", "event,event"], "x", "--by: give each column once, got 'event', 'event'"),
    (["{tmp}/log.csv", "--session", ""], "x", "--session: give the name of a column"),
    (["{tmp}/log.csv", "--click", "view"], "x", "events: 'view' is given twice, by --impression and --click"),
    (["{tmp}/log.csv", "--click", '"a'], "x", "--click: '\"a' is no list of names between commas"),
    (["{tmp}/log.csv", "--memory-gb", "0"], "x", "--memory-gb: must be positive, got 0"),
    (["{tmp}/log.csv", "--clik", "x"], "x", "rtrain metrics: it takes no --clik x"),
]


@pytest.mark.parametrize(("words", "text", "says"), BAD, ids=[says[:60] for _, _, says in BAD])
def test_bad_input_is_one_line(
    words: list[str], text: str, says: str, tmp_path: Path, capsys: Capsys, command: Command
) -> None:
    words = [word.replace("{tmp}", str(tmp_path)) for word in words]
    if words[0].startswith(f"{tmp_path}/") and "none" not in words[0]:
        Path(words[0]).write_text(text)
    assert command(*words, "--json") == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and says in err
    assert err.count("\n") == 1 and len(err) < 500 + 2 * len(str(tmp_path))
    assert json.loads(out) == {"error": err.removeprefix("error: ").rstrip("\n"), "exit_code": 2}


def test_a_folder_of_several_formats_is_refused(tmp_path: Path) -> None:
    write(drawn(0), tmp_path / "a.csv")
    write(drawn(0), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"the folder has files of several formats \(csv, parquet\). Keep those of one"):
        measure_online(str(tmp_path))


def test_a_time_that_is_none_is_refused(tmp_path: Path) -> None:
    log = write([{"session_id": 1, "event": "view", "timestamp": True}], tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"column 'timestamp' \(--time\) is BOOLEAN, and neither numbers nor times"):
        measure_online(log)
    log = write([{"session_id": 1, "event": "view", "timestamp": math.nan}], tmp_path / "log.parquet")
    with pytest.raises(DataError, match="1 of 1 events have no time"):
        measure_online(log)
    log = write([{"session_id": 1, "event": "view", "timestamp": None}], tmp_path / "log.parquet")
    with pytest.raises(DataError, match="1 of 1 events have no time"):
        measure_online(log)


def test_without_duckdb_a_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ConfigError, match=re.escape("metrics online needs DuckDB: pip install 'rtrain[online]'")):
        measure_online(write(drawn(0), tmp_path / "log.csv"))


def test_help_names_each_option_and_its_default(
    capsys: Capsys, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert command("--help") == 0
    text = capsys.readouterr().out.partition("options:")[2]
    for role, default in vars(Columns()).items():
        assert re.search(
            rf"--{role} COLUMNS?  +\S.*\(default: {default}" if default else rf"--{role} COLUMNS?  +\S", text
        )
    for kind, names in vars(Events()).items():
        assert re.search(rf"--{kind.replace('_', '-')} EVENTS  +\S.*\(default: {','.join(names) or 'none'}\)", text)
