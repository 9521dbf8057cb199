"""How a verb ends: its answer on stdout, a mistake on one line of stderr, an exit code."""

import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import redirect_stdout
from traceback import extract_tb
from types import TracebackType
from typing import Any, NoReturn, TextIO

from rtrain import last_words, notices
from rtrain.errors import ConfigError, RtrainError, UserError, did_you_mean, one_line

_told = False
"""Whether it was SIGTERM that interrupted."""


def guarded(work: Callable[[], int], *, as_json: bool, again: str = "goes on from the last checkpoint") -> int:
    """Run a verb; a user's mistake becomes one line, anything unforeseen keeps its traceback.

    `again`: what the same command does after an interruption.
    """
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _told_to_stop) if in_main else None
    stdout = sys.stdout

    def end(text: str, found: dict[str, Any] | None) -> None:
        with redirect_stdout(stdout):
            if found is None:
                _failed(f"{text}; the same command {again}", 1, as_json)
            else:
                print(json.dumps(found) if as_json else text, flush=True)
        os._exit(1)

    try:
        with notices.aside(), last_words.said_by(end):
            return work()
    except RtrainError as error:
        return _failed(one_line(error), error.exit_code, as_json)
    except KeyboardInterrupt:
        why, code = ("told to stop (SIGTERM)", 143) if _told else ("interrupted", 130)
        print(f"{why}; the same command {again}", file=sys.stderr, flush=True)
        if as_json:
            print(json.dumps({"error": why, "exit_code": code}), flush=True)
        return code
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from rtrain.storage import refused_by_storage  # only now: `rtrain --help` does without

        if (text := refused_by_storage(error)) is None:
            raise
        return _failed(text, 1, as_json)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)  # a notebook's, whose process goes on


def _failed(text: str, code: int, as_json: bool) -> int:
    from rtrain.uris import mask_text  # only now: `rtrain --help` does without

    text = mask_text(text)  # a message repeats what was given
    print(f"error: {text}", file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps({"error": text, "exit_code": code}), flush=True)
    return code


def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """For `sys.excepthook`: a user's mistake before any verb, as in a recipe's module, on one line with its place."""
    if not isinstance(error, UserError):
        sys.__excepthook__(kind, error, trace)
        return
    from rtrain.uris import mask_text

    made = ("<string>", "__init__")  # of a dataclass
    frames = [frame for frame in extract_tb(trace) if (frame.filename, frame.name) != made]
    own = [frame for frame in frames if not notices.of_library(frame.filename)]
    place = f"{own[-1].filename}:{own[-1].lineno}: " if own else ""
    print(f"error: {place}{mask_text(one_line(error))}", file=sys.stderr, flush=True)
    if not hasattr(sys, "ps1"):  # a session goes on
        sys.exit(error.exit_code)


def stdout_kept() -> redirect_stdout[TextIO]:
    """For the verb's answer: what is printed meanwhile, as Ray does of a worker that died, goes to standard error."""
    return redirect_stdout(sys.stderr)


def told_to_stop() -> bool:
    """Whether it was SIGTERM that interrupted, and not Ctrl-C."""
    return _told


def refuse(message: str) -> NoReturn:
    """What argparse calls with a mistake.

    Raises:
        ConfigError: it, with the nearest of the choices that it names.
    """
    found = re.search(r"invalid choice: '(.+?)' \(choose from (.+)\)", message)
    near = did_you_mean(found[1], re.findall(r"[\w-]+", found[2])) if found else ""
    raise ConfigError(f"command line: {message}{near}")


def _told_to_stop(number: int, frame: object) -> None:
    """As Ctrl-C, which every part of a run knows how to end by, but with its own exit code."""
    global _told
    _told = True
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):  # a shell starts what is behind `&` so
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)
