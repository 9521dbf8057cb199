"""A command whose process is about to be ended by a library says what it knows, whatever its main thread does."""

import json
import subprocess
import sys
from textwrap import dedent

from rtrain import last_words

COMMAND = """
    import sys, threading, time
    from rtrain import last_words
    from rtrain.cli.answer import guarded, stdout_kept

    def facts(why):
        return f"stopped: {why}", {"done": ["eu"], "why": why}

    def work():
        with stdout_kept(), last_words.knowing(facts) if "known" in sys.argv else stdout_kept():
            threading.Thread(target=last_words.end, args=("the head is away",)).start()
            time.sleep(600)

    sys.exit(guarded(work, as_json="json" in sys.argv, again="goes on"))
"""


def said(*words: str) -> tuple[int, str, str]:
    command = [sys.executable, "-c", dedent(COMMAND), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_what_is_known_is_the_answer() -> None:
    assert said("known") == (1, "stopped: the head is away\n", "")
    code, out, err = said("known", "json")
    assert (code, json.loads(out), err) == (1, {"done": ["eu"], "why": "the head is away"}, "")


def test_where_nothing_is_known_it_is_an_error() -> None:
    error = "the head is away; the same command goes on"
    assert said() == (1, "", f"error: {error}\n")
    code, out, err = said("json")
    assert (code, json.loads(out), err) == (1, {"error": error, "exit_code": 1}, f"error: {error}\n")


def test_where_nobody_ends_it_the_process_goes_on() -> None:
    assert not last_words.end("the head is away")


def test_the_innermost_knows_and_is_forgotten_behind_it() -> None:
    told = list[object]()
    with last_words.said_by(lambda *what: told.append(what)):
        with last_words.knowing(lambda why: (f"outer {why}", None)):
            with last_words.knowing(lambda why: (f"inner {why}", None)):
                assert last_words.end("a")
            last_words.end("b")
        last_words.end("c")
    assert told == [("inner a", None), ("outer b", None), ("c", None)]
    assert not last_words.end("d")
