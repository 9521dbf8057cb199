"""What tests of several files train on."""

import pytest

from tests.parallel.worlds import write_rows


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Parquet file that `worlds.tiny` reads."""
    return write_rows(str(tmp_path_factory.mktemp("rows") / "rows.parquet"))
