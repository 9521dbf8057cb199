"""What a command leaves behind: its processes, and its files outside the folder of its runs."""

import fcntl
import os
import subprocess
import uuid
from contextlib import suppress
from pathlib import Path

from tests.cluster.conftest import environment, wait_for

# Of torch, one for a user and used again: an empty folder for compiled code, made when it is imported.
NOT_OURS = ("torchinductor_",)


class Place:
    """Where one test's commands run, and what there is of them."""

    def __init__(self, folder: Path, ray: Path):
        self.folder, self.ray, self.mark = folder, ray, uuid.uuid4().hex
        self.work, self.temporary = folder / "work", folder / "tmp"
        for path in (self.work, self.temporary):
            path.mkdir()
        self.tmp_before = names_in_tmp()

    def start(self, *command: str) -> subprocess.Popen[str]:
        env = environment(str(self.ray)) | {"TMPDIR": str(self.temporary), "RTRAIN_TEST_MARK": self.mark}
        return subprocess.Popen(
            command,
            cwd=self.work,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def processes(self) -> dict[int, str]:
        """Those that inherited the mark; who has written a title over it (Ray's workers) has our files open."""
        found = {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError):  # it has just ended, or is a kernel's
                if entry.name.isdigit() and self._is_ours(entry):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
        return found

    def _is_ours(self, process: Path) -> bool:
        if "\nState:\tZ" in (process / "status").read_text():
            return False
        if (
            self.mark.encode() in (process / "environ").read_bytes()
            or str(self.ray).encode() in (process / "cmdline").read_bytes()
        ):
            return True
        ours = (f"{self.ray}/", f"{self.temporary}/")
        return any(os.readlink(link).startswith(ours) for link in (process / "fd").iterdir())

    def files(self) -> list[str]:
        """In the temporary folders and beside the runs."""
        kept = self.ray.iterdir() if self.ray.exists() else ()
        here = [*kept, *self.temporary.iterdir(), *(p for p in self.work.iterdir() if p.name != "runs")]
        strange = [p for p in here if not p.name.startswith(NOT_OURS)]
        return sorted(map(str, strange)) + sorted(names_in_tmp() - self.tmp_before)

    def expect_nothing(self, *, within_s: float = 10) -> None:
        """A process that has been told to end may take a moment to be gone."""
        with suppress(AssertionError):
            wait_for(lambda: not self.processes(), "the end of all processes", timeout_s=within_s)
        assert (self.processes(), self.files()) == ({}, [])


def names_in_tmp() -> set[str]:
    """What of ours or of Ray's is in /tmp itself, where no command of these tests is told to write.

    Not what a living process has locked: other tests run beside these.
    """
    names = (p for p in Path("/tmp").iterdir() if p.name.startswith(("rtrain-scratch-", "ray", "torchelastic")))
    return {p.name for p in names if not is_locked(p)}


def is_locked(folder: Path) -> bool:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return True  # gone meanwhile
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
