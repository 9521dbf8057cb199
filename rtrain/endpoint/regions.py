"""The same model in several regions, each a Ray with an endpoint of its own: released one after the other."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from rtrain import last_words
from rtrain.endpoint.canary import Canary
from rtrain.endpoint.endpoint import Endpoint, Settled
from rtrain.errors import ClusterError, RtrainError, UserError, one_line
from rtrain.launch.session import join_running

ADDRESS = "RAY_ADDRESS"


class RegionAwayError(ClusterError):
    """The Ray of a region cannot be joined."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """One of them."""

    name: str
    address: str
    """Of its Ray, `HOST:PORT`, as `RAY_ADDRESS` has it."""
    port: int | None = None
    """That its Ray Serve answers on; none: its own where it runs, else 8000."""

    @classmethod
    def of(cls, text: str) -> tuple["Region", ...]:
        """What a command line says: `eu=10.0.0.1:6379,us=10.1.0.1:6379@9000`; @PORT is that of Ray Serve.

        Raises:
            UserError: it says something else.
        """
        found = []
        for part in text.split(","):
            name, equals, rest = part.partition("=")
            address, at, port = rest.partition("@")
            if not (name.strip() and equals and ":" in address) or (at and not port.isdecimal()):
                raise UserError(f"--regions: NAME=HOST:PORT of each Ray with commas between, got {part!r}")
            found.append(cls(name=name.strip(), address=address, **({"port": int(port)} if at else {})))
        if len({one.name for one in found}) < len(found):
            raise UserError(f"--regions: a name is there twice, in {text!r}")
        return tuple(found)


@dataclass(frozen=True)
class Reached:
    """How a release, or a rollback, over regions ended."""

    done: tuple[str, ...]
    """Regions in which the version that was wanted answers all requests."""
    stopped_at: str = ""
    """The region that it did not get through; empty: all have it."""
    why: str = ""
    left: tuple[str, ...] = ()
    """Regions that were not asked any more."""
    away: tuple[str, ...] = ()
    """Regions that a rollback went past, for their Rays could not be joined: they are as they were."""

    @property
    def everywhere(self) -> bool:
        """Whether all regions have it."""
        return not (self.stopped_at or self.away)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        return {key: list(of) if isinstance(of, tuple) else of for key, of in asdict(self).items()}

    def __str__(self) -> str:
        done = f"answers all requests in {', '.join(self.done)}" if self.done else "answers all requests nowhere"
        if self.away:
            done += f"; {', '.join(self.away)} cannot be joined, and has to be looked at (rtrain endpoints) once it can"
        if not self.stopped_at:
            return f"the version {done}"
        left = f"; {', '.join(self.left)} was not asked any more" if self.left else ""
        return f"stopped at {self.stopped_at} ({self.why}); the version {done}{left}"


@contextmanager
def joined(region: Region) -> Iterator[None]:
    """On a region's Ray, which stays as it is.

    Raises:
        RegionAwayError: it is away.
    """
    before = os.environ.get(ADDRESS)
    os.environ[ADDRESS] = region.address
    try:
        with ExitStack() as there:
            try:
                there.enter_context(join_running(f"region {region.name!r}"))
            except ClusterError as error:
                why = one_line(error.__cause__ or error)
                raise RegionAwayError(
                    f"region {region.name!r}: its Ray at {region.address} cannot be joined ({why}). Start it, or leave "
                    "the region out"
                ) from error
            yield
    finally:
        if before is None:
            del os.environ[ADDRESS]
        else:
            os.environ[ADDRESS] = before


def in_region(endpoint: Endpoint, region: Region) -> Endpoint:
    """The endpoint there: what it decides is kept apart, the registry and the log are the same for all."""
    return replace(endpoint, port=region.port, state=f"{endpoint.state}/{region.name}")


def release_in(
    endpoint: Endpoint,
    regions: Sequence[Region],
    run: str,
    reason: str,
    canary: Canary,
    *,
    timeout_s: float,
    say: Callable[[str], None] = lambda _: None,
) -> Reached:
    """Release a version region by region, each by its own canary; the first that takes it back ends it.

    Regions that have it keep it: what is wrong in one may be right in another, and a person decides. Registry and log
    have to be reachable from all.

    Raises:
        UserError: it cannot begin, in the first region.
    """
    done: list[str] = []
    for number, region in enumerate(regions):
        left = tuple(one.name for one in regions[number + 1 :])
        try:
            with joined(region), last_words.knowing(_cut_off(done, region, left)):
                there = in_region(endpoint, region)
                version = there.release(run, reason, canary, say=_of(region, say))
                settled = there.settled(version.version, timeout_s=timeout_s, say=_of(region, say))
        except RtrainError as error:
            if not done:
                raise
            return Reached(tuple(done), region.name, str(error), left)
        if settled is None or not settled.champion:
            return Reached(tuple(done), region.name, _why(settled), left)
        done.append(region.name)
    return Reached(tuple(done))


def roll_back_in(
    endpoint: Endpoint, regions: Sequence[Region], reason: str, *, say: Callable[[str], None] = lambda _: None
) -> Reached:
    """Take back region by region what `Endpoint.rollback` takes back in the first that is there.

    A region that is served by the registry's champion by then, and tries no version, is as it is to be. One that is
    away holds nobody up: it stays as it is, and is named. Any other error ends it.

    Raises:
        RegionAwayError: all are away.
        UserError: as `Endpoint.rollback`, in the first region that is there.
    """
    done, away = list[str](), list[str]()
    for number, region in enumerate(regions):
        left = tuple(one.name for one in regions[number + 1 :])
        try:
            with joined(region), last_words.knowing(_cut_off(done, region, left, away)):
                there = in_region(endpoint, region)
                as_it_is = bool(done) and there.as_registered()
                _of(region, say)("it answers so already" if as_it_is else there.rollback(reason))
        except RegionAwayError as error:
            away.append(region.name)
            if len(away) == len(regions):
                raise
            say(str(error))
            continue
        except RtrainError as error:
            if not done:
                raise
            return Reached(tuple(done), region.name, str(error), left, tuple(away))
        done.append(region.name)
    return Reached(tuple(done), away=tuple(away))


def _of(region: Region, say: Callable[[str], None]) -> Callable[[str], None]:
    return lambda text: say(f"{region.name}: {text}")


def _cut_off(done: Sequence[str], region: Region, left: tuple[str, ...], away: Sequence[str] = ()) -> last_words.Facts:
    """What is known where the head of a region's Ray dies while it is asked."""

    def facts(why: str) -> tuple[str, dict[str, Any]]:
        reached = Reached(tuple(done), region.name, why, left, tuple(away))
        return str(reached), reached.to_json()

    return facts


def _why(settled: Settled | None) -> str:
    return settled.why if settled else "it waits for a person there"
