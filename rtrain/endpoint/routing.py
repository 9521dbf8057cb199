"""Which version answers a request: by a stable hash of who asks, so that the same one always gets the same version."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Routing:
    """What a router does until it is told otherwise."""

    number: int
    """Rises with each change."""
    champion: str
    """Application of Ray Serve that answers."""
    candidate: str = ""
    """The one that is tried; empty: none."""
    share: float = 0.0
    """Of those who ask, whom the candidate answers."""
    shadow: float = 0.0
    """Of the champion's requests, those that the candidate is asked too."""
    timeout_s: float = 10.0
    """Seconds that the candidate has for an answer."""
    salt: str = ""
    """Other ones are tried on with each candidate, not the same users again and again."""

    def chosen(self, key: str) -> str:
        """The application that answers `key`. Who has the candidate at some share has it at each larger one."""
        return self.candidate if self.candidate and place(f"{self.salt}:{key}") < self.share else self.champion


def salt_of(model: str, version: int) -> str:
    """`Routing.salt` of a version that is tried."""
    return f"{model}-{version}"


def place(key: str) -> float:
    """Of a key in [0, 1): the same in every process and on every machine, as Python's own hash is not."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") / 2**64
