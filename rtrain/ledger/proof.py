"""The proof of a ledger: each epoch's samples held against the data's own."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from rtrain import config
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored, newest
from rtrain.errors import CheckpointError
from rtrain.ledger.record import KINDS, read
from rtrain.ledger.samples import LIMIT, Samples, digest_of_range
from rtrain.run import Run
from rtrain.storage import Folder


@dataclass(frozen=True)
class EpochProof:
    """One epoch's samples held against the data's."""

    epoch: int
    complete: bool
    """Whether the cursor has left the epoch."""
    expected: int
    """Samples that it must have: all of the data's, or as many as the cursor has passed."""
    consumed: int
    skipped: int
    """Samples of batches that were left out on purpose, after a loss spike."""
    missing: int
    """Samples of the data that never came; of a complete epoch."""
    repeated: int
    """Samples that came more than once."""
    foreign: int
    """Samples that the data does not have."""
    examples: tuple[int, ...]
    """Some of those that are wrong."""
    hash: str
    """Order-free hash of the epoch's samples, in hex."""
    hash_holds: bool
    """Whether it is that of the bitmaps, and of a complete epoch that of the data's own numbers."""

    @property
    def holds(self) -> bool:
        """No sample lost, none repeated."""
        wrong = self.missing or self.repeated or self.foreign
        return not wrong and self.hash_holds and self.consumed + self.skipped == self.expected

    @property
    def verdict(self) -> str:
        """In words."""
        if self.holds:
            words = "every sample once" if self.complete else "under way: none twice, as many as the cursor says"
            return f"{words}; {self.skipped} of them skipped on purpose" if self.skipped else words
        found = [f"{n} {word}" for word in ("missing", "repeated", "foreign") if (n := getattr(self, word))]
        if not found and self.consumed + self.skipped != self.expected:
            found = [f"{self.consumed + self.skipped} samples where {self.expected} belong"]
        named = f" (such as {', '.join(map(str, self.examples))})" if self.examples else ""
        return "WRONG: " + (", ".join(found) + named if found else "the hash is not that of the samples")


def prove(stored: Stored, data: range) -> list[EpochProof]:
    """Hold each epoch of a checkpoint's ledger against the numbers of the training split.

    An epoch that is under way is held against the cursor: as many samples as it has passed, all of
    the data, none twice.

    Raises:
        CheckpointError: the ledger does not begin with the run, so there is nothing to prove.
    """
    total, since = read(stored)
    if since:
        raise CheckpointError(
            f"checkpoint step {stored.step}: its ledger begins at step {since}; the steps before were taken by an "
            "rtrain that kept none, so nothing can be proved of this run"
        )
    cursor = stored.meta["state"]["cursor"]
    last = cursor["epoch"] if cursor["sample"] else cursor["epoch"] - 1
    known = set(total["consumed"]) | set(total["skipped"]) | set(range(last + 1))
    whole_hash = digest_of_range(data) if cursor["epoch"] else 0
    proofs = []
    for epoch in sorted(known):
        consumed, skipped = (total[kind].get(epoch, Samples()) for kind in KINDS)
        both = Samples()
        both.merge(consumed)
        both.merge(skipped)
        complete = epoch < cursor["epoch"]
        missing = both.missing(data) if complete else both.missing(range(0))
        foreign, repeated = both.foreign(data), both.repeated
        expected = len(data) if complete else (cursor["sample"] if epoch == cursor["epoch"] else 0)
        proofs.append(
            EpochProof(
                epoch=epoch,
                complete=complete,
                expected=expected,
                consumed=consumed.count,
                skipped=skipped.count,
                missing=len(missing),
                repeated=len(repeated),
                foreign=len(foreign),
                examples=tuple(n for wrong in (missing, repeated, foreign) for n in islice(wrong, 5)),
                hash=f"{both.digest % LIMIT:032x}",
                hash_holds=both.digest == both.recomputed_digest() and (not complete or both.digest == whole_hash),
            )
        )
    return proofs


def lost_beside(stored: Stored, twin: Stored) -> int:
    """Samples that an undisturbed twin consumed by the same step and this run did not.

    An epoch that is still open can only be held against the cursor by number; the twin says which
    samples they must be.
    """
    ours, theirs = _by_epoch(stored), _by_epoch(twin)
    return sum(len(ours.get(epoch, Samples()).lacks(samples)) for epoch, samples in theirs.items())


def _by_epoch(stored: Stored) -> dict[int, Samples]:
    found: dict[int, Samples] = {}
    for epochs in read(stored)[0].values():
        for epoch, samples in epochs.items():
            found.setdefault(epoch, Samples()).merge(samples)
    return found


@dataclass(frozen=True)
class Account:
    """A run's ledger at its newest intact checkpoint."""

    run: str
    checkpoint: str
    step: int
    attempt: int
    samples: int
    """Consumed by all committed steps."""
    epochs: Sequence[EpochProof]
    verified: bool
    """Whether the ledger was held against the data."""
    holds: bool
    """Whether it stood: no sample of the data lost, none repeated, in any epoch."""

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self) | {
            "epochs": [asdict(e) | {"holds": e.holds, "verdict": e.verdict} for e in self.epochs],
            "samples_lost": sum(e.missing for e in self.epochs),
            "samples_repeated": sum(e.repeated for e in self.epochs),
        }

    def __str__(self) -> str:
        lines = [f"{self.run}: step {self.step} of attempt {self.attempt}, {self.samples} samples consumed"]
        lines.append(
            f"{'epoch':>5}  {'samples':>12}  {'of':>12}  {'hash':<32}  verdict" if self.epochs else "no epoch yet"
        )
        for e in self.epochs:
            verdict = e.verdict if self.verified else "not verified"
            lines.append(f"{e.epoch:>5}  {e.consumed + e.skipped:>12}  {e.expected:>12}  {e.hash}  {verdict}")
        if self.verified:
            lines.append("proved: no sample lost, none repeated" if self.holds else "NOT proved")
        else:
            lines.append("--verify holds it against the data")
        return "\n".join(lines)


def account(folder: str, *, verify: bool) -> Account:
    """The ledger of the run in `folder` (a path or URI), `verify`: held against the run's data.

    Raises:
        CheckpointError: no run, no intact checkpoint, no whole ledger, or data that is not the run's.
    """
    home = Folder(folder)
    if not home.exists("run.json"):
        raise CheckpointError(f"{folder!r}: there is no run (no run.json). Give a run's folder, such as runs/NAME")
    run = config.from_dict(home.read_json("run.json"))
    assert isinstance(run, Run)
    stored, problems = newest(CheckpointFolders(folder))
    if stored is None:
        raise CheckpointError(f"{folder!r}: no intact checkpoint, so no ledger{': ' + problems[0] if problems else ''}")
    if verify:
        data = run.data.open()
        if data.fingerprint != stored.meta["data_fingerprint"]:
            raise CheckpointError(
                f"{folder!r}: the data is not what the run was trained on (fingerprint "
                f"{stored.meta['data_fingerprint']} -> {data.fingerprint}), so its ledger cannot be held against it"
            )
        proofs = prove(stored, data.numbers("train"))
    else:
        proofs = prove(stored, range(stored.meta.get("ledger", {}).get("rows", 0)))
    return Account(
        run=run.name,
        checkpoint=stored.uri,
        step=stored.step,
        attempt=stored.meta["attempt"],
        samples=sum(e.consumed for e in proofs),
        epochs=proofs,
        verified=verify,
        holds=verify and all(e.holds for e in proofs),
    )
