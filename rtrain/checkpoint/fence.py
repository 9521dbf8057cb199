"""Two attempts of one run never both write: every start and every commit is an entry of one numbered log.

    {run}/checkpoints/commits/00000001.json                {"kind": "take", "token": "5f1c...", ...}
                              00000002-5f1c09aa31be.json   {"kind": "begin", "attempt": 1, "driver": "5f1c...", ...}
                              00000003-5f1c09aa31be.json   {"kind": "commit", "attempt": 1, "step": 200, ...}
                              00000004-5f1c09aa31be.json   {"kind": "begin", "attempt": 2, "driver": "5f1c...", ...}

A driver takes the run, then attempts of its workers begin: each names its driver, and is refused as
soon as a newer driver has taken the run. So a worker that an old driver restarts takes nothing back.

An entry is created only if no file of its name is there: by link(2) on a local or NFS disk, by a
conditional put on S3, GCS and Azure. A writer knows the last entry that it wrote; it commits by
creating the next one, which fails as soon as anyone else has begun or committed since. So the log
is a compare-and-set, and creating the entry is the commit itself: all files and the manifest are
there before it, the marker only shows it to readers. A new attempt that finds a commit without its
marker sets the marker, so that nothing that the old one may still do changes what the new one sees.

The names after the first carry its token (`log.Chain`): a run that is started anew (--fresh) begins
another chain, so that an entry which an old attempt adds there late has a name that no one looks for.

On a storage without a conditional create (`Folder.creates_once` tries it out) the entry is written
when nothing is there and read back: two writers within the same instant could then both believe that
they won, and only the next commit of the loser finds out. There a lease keeps all others out (`lease`).
"""

import json
import os
import socket
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rtrain.checkpoint import lease, log
from rtrain.checkpoint.folders import Check, CheckpointFolders
from rtrain.checkpoint.log import TOKEN, Chain
from rtrain.checkpoint.marker import MARKER, Marker
from rtrain.errors import CheckpointError

KEPT = 256
"""Entries that stay: a writer that slept through more commits than these finds its own last one gone, and stops."""


class Fenced(CheckpointError):
    """Another attempt of the run has taken over; this one must not write, and not be started again by itself."""


@dataclass
class Writer:
    """Someone who has added an entry to the log, and the run with it: an attempt or a driver."""

    folders: CheckpointFolders
    number: int
    """Of the attempt; a driver's is that of the attempt before it."""
    token: str
    driver: str
    """Token of the driver that it belongs to; its own when it is its own driver."""
    chain: Chain
    """The run's entries; its `last` is the newest one that is this writer's."""

    def add(self, kind: str, **more: Any) -> bool:
        """Write the next entry; false when another one has done so first.

        Raises:
            Fenced: it was added, but the run was started anew meanwhile.
        """
        entry = {
            "kind": kind,
            "attempt": self.number,
            "token": self.token,
            "driver": self.driver,
            "chained": True,
            "node": socket.gethostname(),
            "pid": os.getpid(),
            "at": time.time(),
        }
        content = (json.dumps(entry | more, indent=1) + "\n").encode()
        if not self.folders.log.create(self.chain.following, content):
            return False
        self.chain = self.chain.longer()
        self.confirm()
        return True

    def confirm(self) -> None:
        """After something was added to the run: that it was not added to one that took its place meanwhile.

        Raises:
            Fenced: the run was started anew.
        """
        if not log.is_there(self.folders.log, self.chain):
            if self.chain.last > self.chain.first:  # else the name is a plain one, and by now another's
                self.folders.log.discard(self.chain.newest)
            raise self.anew()

    def anew(self) -> Fenced:
        """What is raised where the run in the folder is not this writer's any more."""
        return Fenced(
            f"run {self.folders.root.uri}: it was started anew (--fresh) while attempt {self.number} was still "
            f"running on {socket.gethostname()}; this attempt stops and has committed nothing there"
        )

    def lost_to(self, winner: dict[str, Any]) -> Fenced:
        """What is raised where another one's entry follows."""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(winner["at"]))
        who = "a newer start" if winner["kind"] == "take" else f"attempt {winner['attempt']}"
        return Fenced(
            f"run {self.folders.root.uri}: {who} (process {winner['pid']} on {winner['node']}, "
            f"since {since} UTC) has taken it over from attempt {self.number}, which stops here and commits nothing. "
            "Let that one go on, or stop it before this one is started again"
        )


class Driver(Writer):
    """Who starts a run's workers, and writes what lies beside its checkpoints."""

    def check(self) -> None:
        """One look at the log.

        Raises:
            Fenced: another driver has taken the run since, or the run was started anew.
        """
        lease.renew(self.folders.log, self.driver)
        _, last = log.look(self.folders.log, self.token)
        if last is None or not log.is_there(self.folders.log, self.chain):
            raise self.anew()
        if last.get("driver") != self.driver:
            raise self.lost_to(last)

    def release(self) -> None:
        """The run is over, or has failed: where there is a lease, the next driver need not wait for its end."""
        with suppress(Exception):  # storage that is gone must not hide why the run failed
            lease.release(self.folders.log, self.driver)


class Attempt(Writer):
    """One start of a run's workers, and its right to write checkpoints."""

    @property
    def names_suffix(self) -> str:
        """Makes the names of the next checkpoint's files this attempt's own: nobody else ever writes them."""
        return f"-e{self.chain.last + 1:08d}-{self.token[:TOKEN]}"

    def check(self) -> None:
        """One look at the log.

        Raises:
            Fenced: another attempt has begun since, another driver has taken the run, or it was started anew.
        """
        lease.renew(self.folders.log, self.driver)
        names = self.folders.log.names()
        while self.chain.following in names and self._is_mine(self.chain.following):
            self.chain = self.chain.longer()  # a commit of ours that we were told had failed
        if self.chain.following in names:
            raise self.lost_to(self.folders.log.read_json(self.chain.following))
        if self.chain.newest not in names or not self._is_mine(self.chain.newest):
            raise self.anew()

    @property
    def overtaken(self) -> bool:
        """Whether `check` would raise: nothing in the run's folder is this one's to write any more."""
        lease.renew(self.folders.log, self.driver)
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
        if not self.add("commit", step=step, manifest=manifest, sha256=sha256):
            raise self.lost_to(self.folders.log.read_json(self.chain.following))

    def shorten_log(self) -> None:
        """Delete all entries but the newest `KEPT`, and the first, which gives the others their names."""
        for name in log.before(self.folders.log, self.chain, self.chain.last - KEPT):
            self.folders.log.discard(name)

    def _is_mine(self, name: str) -> bool:
        try:
            return bool(self.folders.log.read_json(name)["token"] == self.token)
        except FileNotFoundError:  # moved away since it was listed
            return False


def take(folders: CheckpointFolders, *, again: str = "") -> Driver:
    """Become the run's driver: attempts that belong to another one can neither commit nor begin any more.

    `again`: token with which this very driver took the run before, now that its workers are started once more.

    Raises:
        Fenced: another driver has taken the run since `again` did, or the run was started anew.
        CheckpointError: on a storage without a conditional create, when another one holds the run.
    """
    token = again or uuid.uuid4().hex
    if not again:
        lease.take(folders.log, token)
    while True:
        chain, before = log.look(folders.log, token)
        driver = Driver(folders, before["attempt"] if before else 0, token, token, chain)
        if again and before is None:
            raise driver.anew()
        if again and before and before.get("driver") != again:
            raise driver.lost_to(before)
        if driver.add("take"):
            break  # else another one does so in this very moment: after it, then
    _show_last(folders, before)
    return driver


def begin(folders: CheckpointFolders, *, driver: str = "") -> Attempt:
    """Take the run over: whoever was writing it can commit no more. Rank 0's to call.

    `driver`: token of the driver that it belongs to; without one the attempt is its own driver.

    Raises:
        Fenced: another driver has taken the run since this one did, or the run was started anew.
        CheckpointError: as `take`.
    """
    token = uuid.uuid4().hex
    while True:
        chain, before = log.look(folders.log, token)
        number = before["attempt"] + 1 if before else 1
        attempt = Attempt(folders, number, token, driver or token, chain)
        if driver and before is None:
            raise attempt.anew()
        if driver and before and before.get("driver") != driver:
            raise attempt.lost_to(before)
        lease.take(folders.log, attempt.driver)
        if attempt.add("begin"):
            break
    _show_last(folders, before)
    return attempt


def check_of(attempt: Attempt | None) -> Check:
    """What is asked before something is deleted; without an attempt nobody else may write the run."""
    return attempt.check if attempt else lambda: None


def beginnings(folders: CheckpointFolders) -> list[float]:
    """When attempts of the run began, in seconds since the epoch, as far back as the log is kept."""
    return [entry["at"] for entry in log.entries(folders.log) if entry["kind"] == "begin"]


def _show_last(folders: CheckpointFolders, commit: dict[str, Any] | None) -> None:
    """Set the marker of the entry before, if it is a commit: its writer may have died before it did."""
    if commit is None or commit["kind"] != "commit":
        return
    folder = folders.of(commit["step"])
    names, marker = folder.names(), Marker(commit["sha256"], commit["manifest"])
    if marker.manifest not in names or marker.is_on(folder, names):
        return
    if marker.manifest_in(folder) is not None:
        folder.write(MARKER, marker.encode())
