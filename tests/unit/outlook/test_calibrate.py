"""This machine measured as a profile: real products, copies and an all-reduce of two real processes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rtrain import cli
from rtrain.errors import ConfigError
from rtrain.outlook import calibrate as module
from rtrain.outlook.calibrate import Effort, calibrate, median_s
from rtrain.outlook.outlook import outlook
from rtrain.outlook.profile import profile

LITTLE = Effort(seconds=0.0, largest=128, copied_bytes=4 * 1024**2, summed=1024**2)


def written(found: dict[str, Any], path: Path) -> Any:
    path.write_text(json.dumps(found))
    return profile(str(path))


def test_a_measured_profile_is_one_and_says_what_was_measured(tmp_path: Path) -> None:
    like = profile("cpu")
    said: list[str] = []
    mine = written(calibrate(like, ranks=2, effort=LITTLE, say=said.append), tmp_path / "mine.json")
    assert [size for size, _ in mine.efficiency] == [8, 32, 128]
    assert max(fraction for _, fraction in mine.efficiency) == 1.0  # of its own peak
    assert mine.devices_per_node == 2
    assert mine.network_bandwidth == like.network_bandwidth
    by_source = {figure: source for figures, source in mine.sources.items() for figure in figures.split(", ")}
    assert by_source["network_bandwidth"] == "as cpu: not measured here"
    assert by_source["tables_host_s"] == "as cpu: not measured here"
    assert "between 2 processes" in by_source["link_latency_s"]
    assert by_source["flops"].startswith("measured 20")
    assert set(by_source) == set(vars(like)) - {"name", "sources", "accelerator", "devices_per_node", "_curve"}
    assert said[-1] == "all-reduce between 2 processes"


def test_one_device_has_no_links_to_measure(tmp_path: Path) -> None:
    like, threads = profile("cpu"), torch.get_num_threads()
    mine = written(calibrate(like, ranks=1, effort=LITTLE), tmp_path / "mine.json")
    assert mine.link_bandwidth == like.link_bandwidth
    assert torch.get_num_threads() == threads
    from recipes.dlrm_movielens import run

    assert outlook(run(), mine).step_s > 0


def test_the_median_of_several_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, 0.0, 1.0, 0.0, 7.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0, 0.0, 0.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    assert median_s(lambda: None, torch.device("cpu"), 0.0) == 3.0  # of 1, 7, 2, 3, 4; the first does not count


def test_the_verb_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def command(*words: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["rtrain", "calibrate", *words])
        with pytest.raises(SystemExit) as ended:
            cli.console()
        return ended.value.code, *capsys.readouterr()

    monkeypatch.setattr(module, "Effort", lambda: LITTLE)
    out = tmp_path / "of" / "mine.json"
    code, said, _ = command(str(out), "--ranks", "1", "--json")
    assert code == 0
    told = json.loads(said.splitlines()[-1])
    assert told["profile"] == str(out)
    assert told["flops"] == dict(profile(str(out)).flops)
    code, said, _ = command(str(out), "--ranks", "1")
    assert "TFLOP/s; memory" in said
    for words, says in {
        ("mine.txt",): "does not end in .json",
        (str(out), "--ranks", "0"): "--ranks: must be from 1 to",
        (str(out), "--like", "h1000"): "did you mean 'h100'",
        (f"{out}/below.json",): "cannot be written",
    }.items():
        code, _, err = command(*words)
        assert code == 2
        assert says in err
    assert profile(str(out)).efficiency  # a mistake leaves the earlier one


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    found = calibrate(profile("cpu"), ranks=1, effort=LITTLE)
    found["flops"]["int8"] = 1.0
    with pytest.raises(ConfigError, match="unknown figure 'flops.int8'"):
        written(found, tmp_path / "mine.json")
