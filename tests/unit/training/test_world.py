"""A process goes on after it has been in a world."""

import sys

from rtrain.training.world import join, leave


def test_a_world_of_one_leaves_errors_as_they_are_told() -> None:
    """torch puts its own hook in front of each error's lines, one more with each group."""
    before = sys.excepthook
    for _ in range(2):
        join(gpu=False, timeout_s=60.0)
        leave()
    assert sys.excepthook is before
