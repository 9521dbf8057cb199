"""Profiles: those that come with rtrain can be read, and each wrong figure is named with its file."""

import json
from pathlib import Path
from typing import Any

import pytest

from rtrain.errors import ConfigError
from rtrain.outlook.profile import FOLDER, names, profile

BAD: list[tuple[dict[str, Any], str]] = [
    ({"memory_bandwidth": -1.0}, "memory_bandwidth must be a number above 0, got -1.0"),
    ({"memory_bandwidth": None}, "memory_bandwidth must be a number above 0, got None"),
    ({"devices_per_node": 0}, "devices_per_node must be a number above 0, got 0"),
    ({"devices_per_node": 1.5}, "devices_per_node must be whole, got 1.5"),
    ({"link_latency_s": -1e-6}, "link_latency_s must be a number of at least 0, got -1e-06"),
    ({"link_efficiency": 1.5}, "link_efficiency must be above 0 and at most 1, got 1.5"),
    ({"accelerator": "yes"}, "accelerator must be true or false, got 'yes'"),
    ({"flops": {"float32": 1.0, "tf32": 1.0}}, "figure 'flops.bfloat16' is missing. Give its peak FLOP/s"),
    ({"flops": {"float32": 1, "tf32": 1, "bfloat16": 0}}, "flops.bfloat16 must be a number above 0, got 0"),
    ({"efficiency": []}, "efficiency must be a list of [size, fraction], got []"),
    ({"efficiency": [[8, 0.5], [8, 0.6]]}, "its sizes must rise from point to point, got [8, 8]"),
    ({"efficiency": [[8, 1.5]]}, "efficiency must be above 0 and at most 1, got 1.5"),
    ({"memory_bandwith": 1.0}, "unknown figure 'memory_bandwith'; did you mean 'memory_bandwidth'?"),
]


@pytest.mark.parametrize("name", names())
def test_every_profile_of_rtrain_is_whole_and_says_where_it_comes_from(name: str) -> None:
    found = profile(name)
    assert found.name == name and found.flops["float32"] <= found.flops["bfloat16"]
    said = " ".join(found.sources)
    for figure in ("flops", "memory_bytes", "link_bandwidth", "network_bandwidth", "efficiency", "launch_s"):
        assert figure in said


def test_all_that_were_promised_are_there() -> None:
    assert {"h200", "h100", "a100", "l40s", "l4", "cpu"} <= set(names())


@pytest.mark.parametrize(("changes", "said"), BAD)
def test_a_wrong_figure_is_named_with_its_file(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(json.loads((FOLDER / "h100.json").read_text()) | changes))
    with pytest.raises(ConfigError) as refused:
        profile(str(path))
    assert str(path) in str(refused.value) and said in str(refused.value) and "\n" not in str(refused.value)


def test_a_missing_figure_and_other_files_are_refused(tmp_path: Path) -> None:
    stored = json.loads((FOLDER / "h100.json").read_text())
    del stored["link_bandwidth"]
    (tmp_path / "mine.json").write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=r"mine\.json: figure 'link_bandwidth' is missing"):
        profile(str(tmp_path / "mine.json"))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ConfigError, match=r"broken\.json is not JSON"):
        profile(str(tmp_path / "broken.json"))
    with pytest.raises(ConfigError, match=r"no\.json cannot be read"):
        profile(str(tmp_path / "no.json"))
    with pytest.raises(ConfigError, match="no profile 'h10'; did you mean 'h100'"):
        profile("h10")


def test_efficiency_is_a_line_over_the_logarithm_of_the_size() -> None:
    found = profile("h100")
    (low, before), (high, after) = found.efficiency[2:4]
    assert found.efficiency_of((low * high) ** 0.5) == pytest.approx((before + after) / 2)
    assert found.efficiency_of(1) == found.efficiency[0][1] and found.efficiency_of(1e9) == found.efficiency[-1][1]
