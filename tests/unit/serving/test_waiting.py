"""What is said of replicas that do not start."""

import pytest

from rtrain.serving.waiting import DIED, MOST_SAID, failure_in


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("", ""),
        ("Deployment 'A' has 1 replicas that have taken more than 30s to be scheduled.", ""),
        ("Error:\nTraceback (most recent call last):\n  File x\nKeyError: 'a'\nValueError: no", "ValueError: no"),
        ("\x1b[36mray::A\x1b[39m\nRuntimeError: 1\n  length: too long\n", "RuntimeError: 1 length: too long"),
        ("ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.\n\tpid: 3", DIED),
        ("Traceback\nActorDiedError()", DIED),
        ("ValueError: " + "x" * 999, ("ValueError: " + "x" * 999)[:MOST_SAID]),
    ],
)  # fmt: skip
def test_the_last_error_in_one_line(message: str, why: str) -> None:
    assert failure_in(message) == why
