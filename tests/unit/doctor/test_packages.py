"""Versions through the pure fit function; imports by really starting the child process."""

import pytest

from rtrain.doctor.packages import PACKAGES, check_imports, check_python, check_versions, installed

FIT = {
    "torch": "2.13.0+cpu",
    "torchrec": "1.8.0",
    "fbgemm-gpu-cpu": "1.8.0",
    "deepspeed": "0.19.8",
    "ray": "2.60.0",
}


def by_name(versions):
    return {f.name: f for f in check_versions(versions)}


@pytest.mark.parametrize(("torch", "number"), [("2.11.0", "1.6.0"), ("2.13.1+cu130", "1.8.0"), ("2.14.0", "1.9.2")])
def test_pairs_that_fit(torch, number):
    found = check_versions(FIT | {"torch": torch, "torchrec": number, "fbgemm-gpu-cpu": number})
    assert [f.status for f in found] == ["ok"] * 5
    assert all(not f.fix for f in found)


@pytest.mark.parametrize(("torch", "number"), [("2.13.0", "1.9.0"), ("2.14.0", "1.8.0"), ("2.11.0", "1.8.0")])
def test_fbgemm_for_another_torch_fails_and_says_which_fits(torch, number):
    finding = by_name(FIT | {"torch": torch, "fbgemm-gpu-cpu": number})["fbgemm"]
    assert finding.status == "fail"
    wanted = {"2.11.0": "1.6", "2.13.0": "1.8", "2.14.0": "1.9"}[torch]
    assert f"torch {torch[:4]} needs fbgemm {wanted}" in finding.found
    assert "make install" in finding.fix


def test_both_builds_of_fbgemm_fail():
    finding = by_name(FIT | {"fbgemm-gpu": "1.8.0"})["fbgemm"]
    assert finding.status == "fail"
    assert "both builds" in finding.found
    assert "pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu" in finding.fix


def test_an_unknown_torch_is_a_warning_that_lists_the_known_pairs():
    finding = by_name(FIT | {"torch": "2.15.0"})["fbgemm"]
    assert finding.status == "warn"
    assert "fbgemm 1.8 with torch 2.13" in finding.fix


def test_torchrec_and_fbgemm_are_released_in_pairs():
    assert by_name(FIT | {"torchrec": "1.9.0"})["torchrec"].status == "warn"


def test_other_minor_versions_of_deepspeed_and_ray_warn():
    found = by_name(FIT | {"deepspeed": "0.20.1", "ray": "2.61.0"})
    assert (found["deepspeed"].status, found["ray"].status) == ("warn", "warn")


def test_nothing_installed_fails_everywhere_with_a_fix():
    found = check_versions({})
    assert {f.name: f.status for f in found} == dict.fromkeys(
        ("torch", "torchrec", "fbgemm", "deepspeed", "ray"), "fail"
    )
    assert all("make install" in f.fix for f in found)


def test_this_environment_fits():
    assert "fail" not in {f.status for f in check_versions(installed(PACKAGES))}


def test_installed_leaves_out_what_is_not_there():
    assert installed(["no-such-package-of-rtrain"]) == {}


@pytest.mark.parametrize(
    ("running", "status"), [((3, 10), "fail"), ((3, 11), "ok"), ((3, 12), "ok"), ((3, 13), "fail")]
)
def test_python_version(running, status):
    assert check_python(running).status == status


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module that the child process can import."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(name, source):
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write


def test_a_module_that_imports(module):
    (finding,) = check_imports((module("fine", ""),))
    assert (finding.name, finding.status) == ("imports", "ok")


def test_a_crash_while_importing_is_a_finding_that_names_the_module(module):
    crash = module("crashing", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    (finding,) = check_imports((module("fine", ""), crash))
    assert finding.status == "fail"
    assert finding.found == "import crashing: crashed with SIGSEGV"


def test_an_error_while_importing_is_told_in_its_own_words(module):
    broken = module("broken", "print('noise'); raise OSError('libgone.so: cannot open shared object file')")
    (finding,) = check_imports((broken,))
    assert finding.status == "fail"
    assert finding.found == "import broken: OSError: libgone.so: cannot open shared object file"


def test_an_import_that_never_ends_is_a_finding(module):
    (finding,) = check_imports((module("hanging", "import time; time.sleep(600)"),), timeout_s=0.5)
    assert finding.status == "fail"
    assert finding.found == "import hanging: did not finish in 0.5 s"
