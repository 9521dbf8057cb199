"""Trying again: which errors of a storage may pass by themselves, and how long that is waited for."""

import errno
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from rtrain.errors import one_line
from rtrain.uris import mask_text

T = TypeVar("T")
PAUSES = random.Random()
"""Not the one that a run is seeded by: how often a storage was away has to change no draw of a training."""

PASSING = {
    getattr(errno, name)
    for name in (
        "EAGAIN", "EBUSY", "EINTR", "ESTALE", "ETIMEDOUT", "ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "EPIPE",
        "ENETUNREACH", "ENETDOWN", "EHOSTUNREACH", "EHOSTDOWN", "EREMOTEIO",
    )
    if hasattr(errno, name)
}  # fmt: skip
"""Of `OSError`s. ESTALE: what NFS says while its server comes back."""
REFUSING = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
"""Of `OSError`s that a person mends: rights, or room."""

CLIENTS = {
    "HTTPClientError", "FlexibleChecksumError", "IncompleteReadError", "ResponseStreamingError",
    "ClientConnectionError", "ClientPayloadError", "ServerDisconnectedError", "FSTimeoutError", "HttpError",
    "EndpointConnectionError", "ConnectTimeoutError",
}  # fmt: skip
"""What botocore, aiohttp, fsspec and gcsfs raise when a connection breaks, or is refused as while a server starts
anew; named, so that none has to be imported."""


LIBRARIES = {"aiobotocore", "aiohttp", "adlfs", "azure", "botocore", "gcsfs", "google", "s3fs"}
"""Whose own errors are a storage's, wherever they come from."""


SAY_S = 5.0
"""Seconds after which it is said that a storage is waited for."""


class NoBucket(OSError):
    """A storage has no bucket of that name, which is another mistake than a folder that is not there."""


class StorageDown(OSError):
    """A storage that did not come back within its budget; says how often it was tried."""


def refused_by_storage(error: BaseException) -> str | None:
    """In one line where a storage refused, and why; none: it is no error of a storage, or what was asked for is not
    there."""
    if isinstance(error, StorageDown):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return None
    text = one_line(error)
    if type(error).__name__ == "NoCredentialsError":  # botocore's
        text += ". Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, on each node"
    if place := getattr(error, "refused_by_storage", None):
        return f"{place}: {text}"
    refused = isinstance(error, OSError) and error.errno in REFUSING
    return text if refused or type(error).__module__.partition(".")[0] in LIBRARIES else None


@dataclass(frozen=True)
class Patience:
    """Waits between tries grow by two from `first_s` up to `most_s`, each shortened at random by up to a half."""

    budget_s: float = 60.0
    """Seconds after the first failure of an operation in which it may be tried again."""
    first_s: float = 0.1
    most_s: float = 8.0
    went_on: Callable[[], None] = lambda: None
    """Called after each operation, and each part of a long one: a storage that is slow is not one that hangs."""

    def run(self, work: Callable[[], T], *, what: str, remote: bool) -> T:
        """What `work` gives; it must do no harm when it is done twice.

        Raises:
            StorageDown: it failed until the budget was used up.
            Exception: as `work` raised it, when trying again could not mend it (no rights, a full disk).
        """
        began, wait, tries, said = 0.0, self.first_s, 0, False
        while True:
            tries += 1
            try:
                done = work()
                self.went_on()
                return done
            except Exception as error:
                if not may_pass(error, remote=remote):
                    with suppress(AttributeError):  # a kind of error that takes none
                        error.refused_by_storage = what  # type: ignore[attr-defined]
                    raise
                now = time.monotonic()
                began = began or now
                pause = wait * (1 - PAUSES.random() / 2)
                if now + pause - began > self.budget_s:
                    why = one_line(error.__cause__ or error)  # fsspec's FileNotFoundError says less
                    raise StorageDown(f"{what}: {why}, tried {tries} times in {now - began:.0f} s") from error
                if not said and now - began > SAY_S:
                    said = True
                    text = mask_text(f"{what}: {one_line(error)}")
                    print(f"rtrain: {text}; it is tried for {self.budget_s:g} s", file=sys.stderr, flush=True)
                time.sleep(pause)
                wait = min(2 * wait, self.most_s)


def may_pass(error: Exception, *, remote: bool) -> bool:
    """Whether the same operation may succeed a moment later."""
    if isinstance(error, StorageDown):
        return False
    if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):  # all that fsspec says of HTTP
        return may_pass(error.__cause__, remote=remote)
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        # s3fs makes EIO of every answer that it has no better number for; a disk's own EIO stays.
        return error.errno in PASSING or (remote and error.errno == errno.EIO)
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):  # botocore's ClientError
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return bool(status >= 500 or status == 429)
    status = getattr(error, "status", None)
    if isinstance(status, int):  # aiohttp's ClientResponseError, of files by HTTP
        return status >= 500 or status == 429
    return remote and any(kind.__name__ in CLIENTS for kind in type(error).__mro__)
