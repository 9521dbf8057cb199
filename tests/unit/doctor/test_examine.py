"""The whole examination of this machine, and how it is shown."""

import json
import socket

from rtrain import doctor
from rtrain.doctor import Finding, examine, render, to_json

FINDINGS = [
    Finding("python", "ok", "3.11"),
    Finding("port 8000", "fail", "busy", "choose another port"),
    Finding("niceness", "warn", "15", "export RAY_worker_niceness=0"),
]


def test_examine_looks_at_everything_and_a_busy_port_and_bad_storage_show(tmp_path):
    (tmp_path / "file").write_text("")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        port = server.getsockname()[1]
        found = {f.name: f for f in examine(storage=str(tmp_path / "file" / "runs"), ports=(port,))}
    wanted = {"python", "torch", "torchrec", "fbgemm", "deepspeed", "ray", "imports", "gpus", "compiler", "ninja"}
    wanted |= {"torch extensions", "shared memory", "storage", "ray temp dir", f"port {port}", "ray auth"}
    wanted |= {"ray address", "open ray", "cores", "memory", "open files", "niceness"}
    assert set(found) == wanted
    assert found["imports"].status == "ok", found["imports"]
    assert found["storage"].status == found[f"port {port}"].status == "fail"
    assert all(f.fix for f in found.values() if f.status != "ok")
    assert all("\n" not in f.found + f.fix for f in found.values())


def test_a_check_that_breaks_is_a_finding(monkeypatch):
    def broken(_):
        raise RuntimeError("no\nluck")

    monkeypatch.setattr(doctor, "check_ray_address", broken)
    monkeypatch.setattr(doctor, "check_imports", list)
    finding = next(f for f in examine(ports=()) if f.name == "ray address")
    assert finding.status == "warn"
    assert finding.found == "could not be looked at: RuntimeError: no luck"


def test_render_aligns_and_gives_each_fix_a_line():
    assert render(FINDINGS).splitlines() == [
        "ok    python     3.11",
        "FAIL  port 8000  busy",
        "                 fix: choose another port",
        "warn  niceness   15",
        "                 fix: export RAY_worker_niceness=0",
        "3 findings, 1 fail, 1 warn: the main job would fail",
    ]
    assert render([]) == "0 findings, 0 fail, 0 warn: the main job can run"


def test_to_json_is_one_line_with_counts():
    text = to_json(FINDINGS)
    assert "\n" not in text
    data = json.loads(text)
    assert (data["ok"], data["fail"], data["warn"]) == (False, 1, 1)
    assert data["findings"][1] == {
        "name": "port 8000",
        "status": "fail",
        "found": "busy",
        "fix": "choose another port",
    }
