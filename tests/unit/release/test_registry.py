"""Versions, aliases and the log on real runs: who may be champion, who is taken back, and what shows in the log."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from rtrain.cli import console
from rtrain.errors import CheckpointError, ClusterError, ConfigError, UserError
from rtrain.release.audit import AuditLog
from rtrain.release.card import write_card
from rtrain.release.gate import Gate
from rtrain.release.judged import Decision, Judged
from rtrain.release.registry import Registry, other_than_registered
from tests.unit.release.runs import PASSES


class Never:
    """Refuses."""

    def decide(self, of: Judged) -> Decision:
        return Decision("never", False, "it is Friday", {})


FAILS = Gate(checks=(Never(),))


@pytest.fixture
def runs(folder: Path, tmp_path: Path) -> Path:
    """Three runs without a record."""
    for name in ("good", "again", "bad"):
        shutil.copytree(folder / "runs" / name, tmp_path / name)
        (tmp_path / name / "export" / "gate.json").unlink(missing_ok=True)
    return tmp_path


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(f"sqlite:///{tmp_path}/registry.db", f"{tmp_path}/audit")


def test_an_export_is_found_from_any_folder(runs: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    assert registry.register("demo", "bad", "the first").export == f"{runs}/bad/export"


def test_a_card_beside_the_export_is_linked_to_the_version(runs: Path, registry: Registry) -> None:
    assert "card" not in registry.register("demo", f"{runs}/bad", "without one").told
    uri = write_card(f"{runs}/good", "Orders a known user's items; not for new users.")
    told = registry.register("demo", f"{runs}/good", "with one").told
    assert told["card"] == uri and told["card_sha256"] == hashlib.sha256(Path(uri).read_bytes()).hexdigest()


def test_a_champion_was_judged_against_the_one_before(runs: Path, registry: Registry) -> None:
    first = registry.register("demo", f"{runs}/bad", "the first")
    assert (first.version, first.run, first.aliases) == (1, "bad", ()) and json.loads(first.told["test"])["auc"] > 0.5
    assert registry.register("demo", f"{runs}/bad/export", "once more") == first
    with pytest.raises(UserError, match="version 1 was not judged as it is now. Judge it: rtrain gate .*bad/export$"):
        registry.promote("demo", 1, "go")
    FAILS.judge(f"{runs}/bad")
    with pytest.raises(UserError, match=r"did not pass its gate \(never: it is Friday\)"):
        registry.promote("demo", 1, "go")
    PASSES.judge(f"{runs}/bad")
    assert registry.promote("demo", 1, "go").aliases == ("champion",)

    registry.register("demo", f"{runs}/good", "better")
    PASSES.judge(f"{runs}/good")
    with pytest.raises(UserError, match="version 2 was not judged against the champion, version 1. Judge it: "):
        registry.promote("demo", 2, "go")
    PASSES.judge(f"{runs}/good", f"{runs}/bad")
    assert registry.promote("demo", 2, "go", alias="challenger").aliases == ("challenger",)
    assert registry.promote("demo", 2, "go").aliases == ("champion",)
    assert [v.aliases for v in registry.versions("demo")] == [(), ("champion",)]
    assert registry.verify() == []
    done = ["register", "promote", "register", "promote", "promote", "withdraw"]
    assert [e.what for e in registry.log.entries()] == done


def test_a_challenger_that_is_tried_no_more(runs: Path, registry: Registry) -> None:
    for run, champion in (("bad", None), ("good", f"{runs}/bad")):
        registry.register("demo", f"{runs}/{run}", "new")
        PASSES.judge(f"{runs}/{run}", champion)
    registry.promote("demo", 1, "go")
    PASSES.judge(f"{runs}/good", f"{runs}/bad")
    registry.promote("demo", 2, "go", alias="challenger")
    assert registry.withdraw("demo", 2, "it errs").aliases == ()
    assert registry.withdraw("demo", 2, "once more").aliases == () and registry.verify() == []
    newest = list(registry.log.entries())[-1]
    assert (newest.what, newest.reason, newest.details["version"]) == ("withdraw", "it errs", 2)
    registry.client.set_registered_model_alias("demo", "challenger", "2")
    assert registry.verify() == ["model 'demo': version 2 is challenger, but the log says nobody"]


def test_taken_back_is_who_was_champion_before(runs: Path, registry: Registry) -> None:
    before = ""
    for number, name in enumerate(("good", "again", "bad"), 1):
        PASSES.judge(f"{runs}/{name}", before or None)
        registry.promote("demo", registry.register("demo", f"{runs}/{name}", "new").version, "go")
        before = f"{runs}/{name}"
        holder = registry.holder("demo", "champion")
        assert holder and holder.version == number
    assert registry.rollback("demo", "wrong answers").version == 2
    PASSES.judge(f"{runs}/bad", f"{runs}/again")
    assert registry.promote("demo", 3, "mended").aliases == ("champion",)
    assert [registry.rollback("demo", "again").version for _ in range(2)] == [2, 1]
    with pytest.raises(UserError, match="version 1 is its first champion"):
        registry.rollback("demo", "further")
    with pytest.raises(UserError, match="it has no champion"):
        registry.rollback("other", "why")
    assert registry.verify() == []
    last = list(registry.log.entries())[-1]
    assert (last.what, last.details["version"], last.details["from"]) == ("rollback", 1, 2)


def test_an_export_that_was_changed_is_not_what_was_registered(runs: Path, registry: Registry) -> None:
    registry.register("demo", f"{runs}/good", "new")
    head = runs / "good" / "export" / "export.json"
    head.write_text(head.read_text() + " ")
    PASSES.judge(f"{runs}/good")
    with pytest.raises(UserError, match="version 1 was not judged as it is now"):
        registry.promote("demo", 1, "go")
    assert registry.register("demo", f"{runs}/good", "written anew").version == 2
    assert registry.promote("demo", 2, "go").aliases == ("champion",)


def test_what_was_altered_after_the_gate_is_not_promoted(runs: Path, registry: Registry) -> None:
    PASSES.judge(f"{runs}/good")
    registry.register("demo", f"{runs}/good", "the first")
    weights = runs / "good" / "export" / "model-00000.safetensors"
    whole = weights.read_bytes()
    for alias in ("challenger", "champion"):  # it is neither, and then challenger already
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(CheckpointError, match=f"{weights.name} is missing or was altered"):
            registry.promote("demo", 1, "go", alias=alias)
        weights.write_bytes(whole)
        registry.promote("demo", 1, "go", alias="challenger")
    registry.withdraw("demo", 1, "go")
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=f"{weights.name} is missing or was altered"):
        registry.promote("demo", 1, "go")
    weights.write_bytes(whole)
    record = runs / "good" / "export" / "gate.json"
    judged = record.read_text()
    told = json.loads(judged)
    for text, says in (
        ("{", "gate.json: it is no JSON"),
        ("[]", "gate.json: it is no record of a gate"),
        (json.dumps({key: value for key, value in told.items() if key != "decisions"}), "no record .*'decisions'"),
        (json.dumps(told | {"passed": False}), "it says another verdict than its decisions"),
    ):
        record.write_text(text)
        with pytest.raises(CheckpointError, match=f"{says}.* Run rtrain gate anew"):
            registry.promote("demo", 1, "go")
    record.write_text(judged)
    registry.promote("demo", 1, "go")
    *_, last = registry.log.entries()
    assert last.details["gate"] == hashlib.sha256(judged.encode()).hexdigest()
    assert registry.verify() == []
    weights.write_bytes(whole[:-1])
    (found,) = registry.verify()
    assert (
        f"version 1 has altered files: export '{runs}/good/export': {weights.name} is missing or was altered" in found
    )


def test_a_champion_whose_export_is_another_by_now_shows(runs: Path, registry: Registry) -> None:
    PASSES.judge(f"{runs}/good")
    registry.promote("demo", registry.register("demo", f"{runs}/good", "new").version, "go")
    assert registry.verify() == [] and other_than_registered(registry.version("demo", 1)) == ""
    head = runs / "good" / "export" / "export.json"
    kept = head.read_text()
    head.write_text(kept + " ")
    (problem,) = registry.verify()
    assert "version 1 is not what was registered" in problem and f"{runs}/good/export" in problem
    head.unlink()
    assert registry.verify() == [], "storage that is away says nothing"
    head.write_text(kept)
    registry.client.set_model_version_tag("demo", "1", "model", "0" * 64)
    assert registry.verify() == ["model 'demo': version 1 is another model than the log says"]


def test_whatever_is_done_to_the_log_shows(runs: Path, registry: Registry) -> None:
    PASSES.judge(f"{runs}/good")
    registry.register("demo", f"{runs}/good", "new")
    registry.promote("demo", 1, "go")
    registry.promote("demo", 1, "go", alias="challenger")
    folder = Path(registry.log.folder.path)
    entries = sorted(folder.glob("0*.json"))
    kept = {path: path.read_text() for path in entries}

    def spoiled() -> list[str]:
        found = registry.verify()
        for path, text in kept.items():
            path.write_text(text)
        assert registry.verify() == []
        return found

    entries[1].write_text(kept[entries[1]].replace('"go"', '"no"'))
    assert "entry 3 does not follow" in spoiled()[0]
    entries[1].unlink()
    assert spoiled()[0].startswith("entry 2 is missing")
    entries[2].unlink()
    assert any("entries were cut off" in problem for problem in spoiled())
    entries[2].write_text("{}")
    assert "entry 3 is no entry" in spoiled()[0]
    registry.client.delete_registered_model_alias("demo", "champion")
    assert registry.verify() == ["model 'demo': nobody is champion, but the log says 1"]


def test_two_writers_lose_no_entry(tmp_path: Path) -> None:
    def write(writer: int) -> None:
        for number in range(10):
            AuditLog(str(tmp_path)).append("promote", "why", {"writer": writer, "number": number})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    log = AuditLog(str(tmp_path))
    assert log.verify() == []
    found = [(e.details["writer"], e.details["number"]) for e in log.entries()]
    assert sorted(found) == [(writer, number) for writer in range(4) for number in range(10)]


def test_bad_input_is_one_line(runs: Path, registry: Registry) -> None:
    for call, says in (
        (lambda: registry.register("a/b", f"{runs}/good", "new"), "a name is printable, without"),
        (lambda: registry.register("demo", f"{runs}/good", " "), "reason: it is empty"),
        (lambda: registry.register("demo", f"{runs}/nothing", "new"), "there is no finished run"),
        (lambda: registry.promote("demo", 3, "go"), "no version 3; there is no such model"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            call()
        assert "\n" not in str(caught.value)
    registry.register("demo", f"{runs}/good", "new")
    with pytest.raises(UserError, match="no version 3; it has 1 to 1"):
        registry.promote("demo", 3, "go")
    with pytest.raises(ConfigError, match="it is one of champion, challenger"):
        registry.promote("demo", 1, "go", alias="best")
    with pytest.raises(ConfigError, match="give sqlite:///FILE, or a server's"):
        Registry("file:///tmp/x")
    (runs / "broken.db").write_text("this is no database")
    with pytest.raises(ClusterError, match="MLflow did not do it"):
        Registry(f"sqlite:///{runs}/broken.db", f"{runs}/audit")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """MLflow's own, in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store = ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", "--port", f"{port}", *store]
    with open(tmp_path / "server.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "server.log").read_text()[-2000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_server_keeps_versions_whose_exports_it_cannot_see(runs: Path, server: str) -> None:
    registry = Registry(server, f"{runs}/audit")
    for name, champion in (("bad", None), ("good", f"{runs}/bad")):
        PASSES.judge(f"{runs}/{name}", champion)
        made = registry.register("demo", f"{runs}/{name}", "new")
        assert made.export == f"{runs}/{name}/export" and registry.register("demo", f"{runs}/{name}", "again") == made
        assert registry.promote("demo", made.version, "better").aliases == ("champion",)
    assert registry.rollback("demo", "worse").run == "bad" and registry.verify() == []
    with pytest.raises(ClusterError, match="Check that the folder is writable, or the server up"):
        Registry(server.rpartition(":")[0] + ":9", f"{runs}/audit").versions("demo")


def test_the_commands(runs: Path, registry: Registry, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    where = ["--registry", registry.uri, "--audit", f"{runs}/audit"]

    def ended(*words: str) -> Any:
        monkeypatch.setattr("sys.argv", ["rtrain", *words, *where])
        with pytest.raises(SystemExit) as end:
            console()
        return end.value.code, capsys.readouterr()

    assert ended("gate", f"{runs}/bad", "--model", "demo", "--calibration", "0.9")[0] == 0
    code, told = ended("promote", f"{runs}/bad", "--as", "demo", "--reason", "the first")
    assert code == 0 and told.out.startswith("demo 1: run bad, step ") and told.out.endswith("<- champion\n")
    code, told = ended("gate", f"{runs}/good", "--model", "demo", "--json")
    assert code == 0 and json.loads(told.out)["champion"]["run"] == "bad"
    assert ended("promote", f"{runs}/good", "--as", "demo", "--reason", "better", "--json")[0] == 0
    code, told = ended("rollback", "demo", "--reason", "a try")
    assert code == 0 and told.out.startswith("demo 1: ")
    code, told = ended("versions", "demo")
    assert code == 0 and [line.endswith("<- champion") for line in told.out.splitlines()] == [True, False]
    code, told = ended("audit", "show")
    assert code == 0 and len(told.out.splitlines()) == 5 and ": a try" in told.out.splitlines()[-1]
    assert ended("audit", "verify")[0] == 0
    (runs / "audit" / "00000002.json").write_text("{}")
    assert ended("audit", "verify")[0] == 1
    code, told = ended("versions", "other")
    assert code == 2 and "there is no model 'other'" in told.err


@pytest.mark.parametrize(
    "words", [("versions", "demo"), ("audit", "show"), ("audit", "verify"), ("rollback", "demo", "--reason", "a try")]
)
def test_who_reads_makes_no_registry(
    words: tuple[str, ...], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["rtrain", *words])
    with pytest.raises(SystemExit) as end:
        console()
    said = "registry 'sqlite:///runs/registry.db': there is none. rtrain promote, or release, makes it"
    assert end.value.code == 2 and said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_log_that_is_not_there_is_not_whole(
    registry: Registry, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["rtrain", "audit", "verify", "--registry", registry.uri, "--audit", "no/log"])
    with pytest.raises(SystemExit) as end:
        console()
    assert end.value.code == 2 and "audit verify: there is no log in 'no/log'" in capsys.readouterr().err
