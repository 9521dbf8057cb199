"""Where a path lies, for every process alike."""

import os


def located(uri: str) -> str:
    """A local path made absolute, so that it means the same in every process; empty, and a URI, as it is."""
    return os.path.abspath(uri) if uri and "://" not in uri else uri
