"""Two attempts of one run never both write: every start and every commit is an entry of one numbered log.

    {run}/checkpoints/commits/00000001.json                {"kind": "begin", "attempt": 1, "token": "5f1c...", ...}
                              00000002-5f1c09aa31be.json   {"kind": "commit", "attempt": 1, "step": 200, ...}
                              00000003-5f1c09aa31be.json   {"kind": "begin", "attempt": 2, "token": "b07d...", ...}

An entry is created only if no file of its name is there: by link(2) on a local or NFS disk, by a
conditional put on S3, GCS and Azure. A writer knows the last entry that it wrote; it commits by
creating the next one, which fails as soon as anyone else has begun or committed since. So the log
is a compare-and-set, and creating the entry is the commit itself: all files and the manifest are
there before it, the marker only shows it to readers. A new attempt that finds a commit without its
marker sets the marker, so that nothing that the old one may still do changes what the new one sees.

The names after the first carry its token (`log.Chain`): a run that is started anew (--fresh) begins
another chain, so that an entry which an old attempt adds there late has a name that no one looks for.

On a file system without a conditional create the entry is written when nothing is there and read
back: two writers within the same instant could then both believe that they won, and only the next
commit of the loser finds out. `Folder.create` says which it is.
"""

import hashlib
import json
import os
import socket
import time
import uuid
from dataclasses import dataclass
from typing import Any

from rtrain.checkpoint import log
from rtrain.checkpoint.log import TOKEN, Chain
from rtrain.checkpoint.store import MANIFEST, MARKER, Check, CheckpointFolders
from rtrain.errors import CheckpointError

KEPT = 256
"""Entries that stay: a writer that slept through more commits than these finds its own last one gone, and stops."""


class Fenced(CheckpointError):
    """Another attempt of the run has taken over; this one must not write, and not be started again by itself."""


@dataclass
class Attempt:
    """One start of a run, and its right to write."""

    folders: CheckpointFolders
    number: int
    token: str
    chain: Chain
    """The run's entries; its `last` is the newest one that this attempt wrote."""

    @property
    def names_suffix(self) -> str:
        """Makes the names of the next checkpoint's files this attempt's own: nobody else ever writes them."""
        return f"-e{self.chain.last + 1:08d}-{self.token[:TOKEN]}"

    def check(self) -> None:
        """One look at the log.

        Raises:
            Fenced: another attempt has begun since, or the run was started anew.
        """
        names = self.folders.log.names()
        while self.chain.following in names and self._is_mine(self.chain.following):
            self.chain = self.chain.longer()  # a commit of ours that we were told had failed
        if self.chain.following in names:
            raise self._lost()
        if self.chain.newest not in names or not self._is_mine(self.chain.newest):
            raise self._anew()

    @property
    def overtaken(self) -> bool:
        """Whether another attempt has begun since: nothing in the run's folder is this one's to write any more."""
        chain, names = self.chain, self.folders.log.names()
        if chain.following in names:  # a thread may be committing: its entry is no one else's
            return not self._is_mine(chain.following)
        return chain.newest not in names or not self._is_mine(chain.newest)

    def commit(self, step: int, manifest: str, sha256: str) -> None:
        """Make a checkpoint whose files and manifest are in place the run's; rank 0's to call.

        Raises:
            Fenced: another attempt has begun or committed since.
        """
        self.check()
        entry = self._entry("commit") | {"step": step, "manifest": manifest, "sha256": sha256}
        if not self.folders.log.create(self.chain.following, _bytes(entry)):
            raise self._lost()
        self.chain = self.chain.longer()
        self.confirm()

    def shorten_log(self) -> None:
        """Delete all entries but the newest `KEPT`, and the first, which gives the others their names."""
        for name in log.before(self.folders.log, self.chain, self.chain.last - KEPT):
            self.folders.log.discard(name)

    def confirm(self) -> None:
        """After something was added to the run: that it was not added to one that took its place meanwhile.

        Raises:
            Fenced: the run was started anew.
        """
        if not log.is_there(self.folders.log, self.chain):
            if self.chain.last > self.chain.first:  # else the name is a plain one, and by now another's
                self.folders.log.discard(self.chain.newest)
            raise self._anew()

    def _is_mine(self, name: str) -> bool:
        try:
            return bool(self.folders.log.read_json(name)["token"] == self.token)
        except FileNotFoundError:  # moved away since it was listed
            return False

    def _entry(self, kind: str) -> dict[str, Any]:
        return {
            "kind": kind,
            "attempt": self.number,
            "token": self.token,
            "chained": True,
            "node": socket.gethostname(),
            "pid": os.getpid(),
            "at": time.time(),
        }

    def _anew(self) -> Fenced:
        return Fenced(
            f"run {self.folders.root.uri}: it was started anew (--fresh) while attempt {self.number} was still "
            f"running on {socket.gethostname()}; this attempt stops and has committed nothing there"
        )

    def _lost(self) -> Fenced:
        winner = self.folders.log.read_json(self.chain.following)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(winner["at"]))
        return Fenced(
            f"run {self.folders.root.uri}: attempt {winner['attempt']} (process {winner['pid']} on {winner['node']}, "
            f"since {since} UTC) has taken it over from attempt {self.number}, which stops here and commits nothing. "
            "Let that one go on, or stop it before this one is started again"
        )


def begin(folders: CheckpointFolders, *, at_least: int = 1) -> Attempt:
    """Take the run over: whoever was writing it can commit no more. Rank 0's to call.

    `at_least`: the number of this attempt when the log knows of none before.
    """
    token = uuid.uuid4().hex
    while True:
        chain, before = log.look(folders.log, token)
        number = max(at_least, before["attempt"] + 1 if before else 1)
        attempt = Attempt(folders, number, token, chain.longer())
        if folders.log.create(chain.following, _bytes(attempt._entry("begin"))):
            break  # else another one begins in this very moment: after it, then
    attempt.confirm()
    if before and before["kind"] == "commit":
        _show(folders, before)
    return attempt


def check_of(attempt: Attempt | None) -> Check:
    """What is asked before something is deleted; without an attempt nobody else may write the run."""
    return attempt.check if attempt else lambda: None


def beginnings(folders: CheckpointFolders) -> list[float]:
    """When attempts of the run began, in seconds since the epoch, as far back as the log is kept."""
    return [entry["at"] for entry in log.entries(folders.log) if entry["kind"] == "begin"]


def _show(folders: CheckpointFolders, commit: dict[str, Any]) -> None:
    """Set the marker of a commit whose writer may have died before it did."""
    folder = folders.of(commit["step"])
    names, manifest = folder.names(), commit["manifest"]
    marker = marker_of(commit["sha256"], manifest)
    if manifest not in names or (MARKER in names and folder.read(MARKER) == marker):
        return
    if hashlib.sha256(folder.read(manifest)).hexdigest() == commit["sha256"]:
        folder.write(MARKER, marker)


def marker_of(sha256: str, manifest: str) -> bytes:
    """The content of a commit marker: the manifest's hash, and its name unless it is the plain one."""
    return (sha256 if manifest == MANIFEST else f"{sha256} {manifest}").encode()


def _bytes(entry: dict[str, Any]) -> bytes:
    return (json.dumps(entry, indent=1) + "\n").encode()
