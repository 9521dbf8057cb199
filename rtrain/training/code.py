"""Which code this is: a repository's commit and branch, and what differs from it, as text with its secrets masked."""

import hashlib
import os
import select
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from rtrain.errors import briefly
from rtrain.tracking.secrets import mask_lines

MOST_BYTES = 2**20
"""Of a diff that are kept."""
MOST_NAMES = 1000
"""Untracked files that are named."""
GIT_S = 10.0
"""Seconds within which git answers: on a slow disk a large work tree is not known rather than waited for."""
QUIET = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


@dataclass(frozen=True)
class Code:
    """The work tree that some file lies in."""

    root: str = ""
    """Its top folder; empty where there is none."""
    commit: str = ""
    branch: str = ""
    """Empty where no branch is checked out."""
    changes: str = ""
    """Digest of the diff to the commit; empty where tracked files are as committed. Untracked ones do not count: a
    run's own folder may be one."""
    text: str = ""
    """The diff and the names of untracked files; empty where there are neither."""
    cut: bool = False
    """Whether the diff was longer than what is kept."""
    untracked: int = 0
    """Files, or whole folders, that git does not know and was not told to ignore."""
    why: str = ""
    """Why something of it is not known."""

    @property
    def short(self) -> str:
        """The commit, with `+changes` where files differ from it; empty where none is known."""
        return self.commit[:12] + ("+changes" if self.changes else "")


def code_at(place: Path, *, known: Path | None = None) -> Code:
    """The work tree around a folder; `known`: a file that has to be one of its own, else there is no work tree."""
    try:
        root = _git(place, "rev-parse", "--show-toplevel").strip()
        if known is not None:
            _git(place, "ls-files", "--error-unmatch", str(known))
    except (OSError, subprocess.SubprocessError) as error:
        return Code(why=_said(error))
    try:
        names = _git(Path(root), "ls-files", "--others", "--exclude-standard", "--directory").splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        return Code(root=root, why=_said(error))
    listed = [f"# untracked: {name}\n" for name in names[:MOST_NAMES]]
    if len(names) > MOST_NAMES:
        listed.append(f"# and {len(names) - MOST_NAMES} more\n")
    code = Code(root=root, untracked=len(names), text="".join(listed))
    try:
        commit = _git(Path(root), "rev-parse", "HEAD").strip()
        branch = _git(Path(root), "rev-parse", "--abbrev-ref", "HEAD").strip()
    except (OSError, subprocess.SubprocessError) as error:
        return replace(code, why=f"no commit: {_said(error)}")
    code = replace(code, commit=commit, branch="" if branch == "HEAD" else branch)
    try:
        diff, cut = _diff(Path(root))
    except (OSError, subprocess.SubprocessError) as error:
        return replace(code, why=f"no diff: {_said(error)}")
    changes = hashlib.sha256(diff.encode()).hexdigest()[:16] if diff else ""
    end = f"# cut here: only the first {MOST_BYTES} bytes of the diff are kept\n" if cut else ""
    return replace(code, changes=changes, cut=cut, text=diff + end + code.text)


def code_of_recipe(script: str = "") -> Code:
    """The work tree that the running script lies in; of one that was installed, and of a notebook, the current folder.

    `script`: another one than `sys.argv[0]`.
    """
    path = Path(script or sys.argv[0] or ".").resolve()
    installed = path.is_relative_to(Path(sys.prefix).resolve())
    return code_at(path.parent if path.is_file() and not installed else Path.cwd())


def code_of_rtrain() -> Code:
    """That of rtrain itself, where it is a checkout and no installed package."""
    known = Path(__file__).resolve().parents[1] / "version.py"
    return code_at(known.parent, known=known)


def _git(place: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-c", "core.quotepath=off", "-C", str(place), *words],
        capture_output=True, timeout=GIT_S, check=True, env=os.environ | QUIET, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.stdout.decode(errors="replace")


def _diff(root: Path) -> tuple[str, bool]:
    """What differs from the commit, secrets masked, and whether it is only the first part of that.

    Raises:
        OSError, SubprocessError: git failed, or was not done in time.
    """
    words = ("diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--full-index")
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            ["git", "-c", "core.quotepath=off", "-C", str(root), *words],
            stdout=subprocess.PIPE, stderr=said, env=os.environ | QUIET, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            found = _read(process.stdout.fileno(), MOST_BYTES + 1, time.monotonic() + GIT_S, words)
            cut = len(found) > MOST_BYTES
            if cut:
                process.kill()  # however much more there is
            code = process.wait(timeout=GIT_S)
        finally:
            process.kill()
            process.stdout.close()
            process.wait(timeout=GIT_S)
        if code and not cut:
            said.seek(0)
            raise subprocess.CalledProcessError(code, words, stderr=said.read())
    if cut:
        found = found[: found.rfind(b"\n", 0, MOST_BYTES) + 1]
    return mask_lines(found.decode(errors="replace")), cut


def _read(handle: int, most: int, until: float, words: tuple[str, ...]) -> bytes:
    """At most so many bytes of a pipe, within a time."""
    found = bytearray()
    while len(found) < most:
        ready, _, _ = select.select([handle], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            raise subprocess.TimeoutExpired(words, GIT_S)
        part = os.read(handle, min(2**16, most - len(found)))
        if not part:
            break
        found += part
    return bytes(found)


def _said(error: Exception) -> str:
    """git's own words, in one line."""
    if isinstance(error, FileNotFoundError):
        return "git is not installed"
    if isinstance(error, subprocess.CalledProcessError) and error.stderr:
        return " ".join(error.stderr.decode(errors="replace").split())[:300]
    return briefly(error)
