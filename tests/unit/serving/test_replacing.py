"""What Ray Serve takes for a new version."""

import random

from ray.serve._private.utils import get_random_string

from rtrain.serving.replacing import drawn_afresh


def test_versions_of_a_process_that_is_seeded_twice_have_other_names() -> None:
    names, after = set(), set()
    for _ in range(3):
        random.seed(7)  # as a training does
        with drawn_afresh():
            names.add(get_random_string())
        after.add(random.random())
    assert len(names) == 3 and after == {random.Random(7).random()}, "and what was seeded goes on"
