"""Finished runs, made once."""

from dataclasses import replace
from pathlib import Path

import pytest

from rtrain.schema import Dense
from tests.unit.release.runs import SCHEMA, run_of, write_rows
from tests.unit.training.jobs import train


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that learned it, that hardly did, and that ask for more."""
    path = tmp_path_factory.mktemp("gate")
    write_rows(path)
    wider = replace(SCHEMA, features=(*SCHEMA.features, Dense(name="more")))
    for run in (run_of(path, "good"), run_of(path, "again"), run_of(path, "bad", lr=1e-7)):
        train(run)
    train(run_of(path, "wider", schema=wider))
    return path
