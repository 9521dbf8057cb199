"""Versions of models in MLflow's registry, and which is the champion: after a passed gate, for a reason, logged."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from rtrain.errors import CheckpointError, ClusterError, ConfigError, RtrainError, UserError, briefly
from rtrain.export.head import HEAD
from rtrain.export.weights import refuse_altered
from rtrain.metrics.names import is_of_slice
from rtrain.release.audit import AuditLog
from rtrain.release.card import CARD
from rtrain.release.finished import Finished
from rtrain.release.gate import RECORD, verdict_of
from rtrain.storage import Folder
from rtrain.storage.paths import located
from rtrain.tracking import mask_text

CHAMPION, CHALLENGER = "champion", "challenger"
ALIASES = (CHAMPION, CHALLENGER)
NEWEST = "rtrain.audit"
"""Tag of a registered model: sha256 of the newest entry of the log that is of it."""


LOCAL = "rtrain://"
"""Before the path of an export at a server, which takes no path of a machine that is not its own for a source."""


@dataclass(frozen=True)
class Version:
    """A version of a model."""

    name: str
    version: int
    export: str
    """Where its export is."""
    model: str
    """sha256 of the export's head, as it was registered."""
    run: str
    step: int
    aliases: tuple[str, ...]
    told: Mapping[str, str]
    """Its `checkpoint`, `commit` and, as JSON, its metrics of the `test` split."""

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        return asdict(self)

    def __str__(self) -> str:
        marks = f"  <- {', '.join(self.aliases)}" if self.aliases else ""
        return f"{self.name} {self.version}: run {self.run}, step {self.step}, {self.export}{marks}"


class Registry:
    """MLflow's model registry, in an SQLite file or on a server, and the log of its changes."""

    def __init__(self, uri: str = "sqlite:///runs/registry.db", audit: str = "runs/audit"):
        """Open it; an SQLite file is made where there is none.

        Args:
            uri: `sqlite:///FILE`, or a server's `http://` or `https://`.
            audit: folder or URI of the log, which all who change the registry share.

        Raises:
            ConfigError: an URI of another kind.
            ClusterError: it cannot be opened.
        """
        kind = uri.partition(":")[0].partition("+")[0]
        if kind not in ("sqlite", "http", "https"):
            raise ConfigError(f"registry {mask_text(uri)!r}: give sqlite:///FILE, or a server's http:// or https://")
        if kind == "sqlite":
            Path(uri.removeprefix("sqlite:///")).absolute().parent.mkdir(parents=True, exist_ok=True)
        self.uri, self.log = uri, AuditLog(audit)
        self.client = self._asked(lambda: _client(uri))

    def register(self, name: str, run: str, reason: str) -> Version:
        """A finished run's export as the newest version of a model; one that is registered already stays what it is.

        A `card.md` beside the export is linked to the version: tags `card` and `card_sha256`.

        Raises:
            UserError: no finished run there, or one without an export; no reason; a name that cannot be one.
        """
        _check(name, reason)
        finished = Finished.read(located(run))  # whoever serves it works in another folder
        for version in self.versions(name):
            if version.model == finished.digest and version.export == finished.export.uri:
                return version
        if not self._names(name):
            self._asked(lambda: self.client.create_registered_model(name))
        result = finished.result
        told = {key: str(result[key]) for key in ("checkpoint", "commit") if result.get(key)}
        told["test"] = json.dumps({key: value for key, value in result["test"].items() if not is_of_slice(key)})
        source = finished.export.uri
        if finished.export.exists(CARD):
            told |= {"card": f"{source}/{CARD}", "card_sha256": sha256(finished.export.read(CARD)).hexdigest()}
        tags = {"model": finished.digest, "run": finished.name, "step": str(result["best_step"])} | told
        self._logged(name, "register", reason, {"model": name, "run": finished.name, "sha256": finished.digest})
        if source.startswith("/") and not self.uri.startswith("sqlite"):
            source = LOCAL + source
        made = self._asked(lambda: self.client.create_model_version(name, source=source, tags=tags))
        return self.version(name, int(made.version))

    def promote(self, name: str, version: int, reason: str, *, alias: str = CHAMPION, answers: bool = False) -> Version:
        """Give a version an alias, which another one may lose by it; the champion is the challenger no more.

        `answers`: it is served, by replicas that read all its files as they started, so that they are not read again.

        Raises:
            UserError: no such version, one whose gate was not passed, or not against the present champion.
            CheckpointError: its files are not those that were judged, or the record of the gate is none.
        """
        _check(name, reason)
        if alias not in ALIASES:
            raise ConfigError(f"alias {alias!r}: it is one of {', '.join(ALIASES)}")
        found, holder = self.version(name, version), self.holder(name, alias)
        if holder and holder.version == version:
            return self.withdraw(name, version, reason) if alias == CHAMPION else found
        champion = self.holder(name, CHAMPION)
        _refuse_unjudged(found, champion if champion and champion.version != version else None)
        if not answers:
            refuse_altered(found.export)
        record = sha256(Folder(found.export).read(RECORD)).hexdigest()
        made = self._give(found, alias, "promote", reason, holder, record)
        return self.withdraw(name, version, reason) if alias == CHAMPION else made

    def withdraw(self, name: str, version: int, reason: str) -> Version:
        """Take the alias `challenger` from a version, if it has it: it is tried no more.

        Raises:
            UserError: no such version.
        """
        _check(name, reason)
        found = self.version(name, version)
        if CHALLENGER not in found.aliases:
            return found
        details = {"model": name, "version": version, "alias": CHALLENGER, "sha256": found.model}
        self._logged(name, "withdraw", reason, details)
        self._asked(lambda: self.client.delete_registered_model_alias(name, CHALLENGER))
        return self.version(name, version)

    def rollback(self, name: str, reason: str) -> Version:
        """Make the version the champion again that was it before this one, as the log says; no gate is asked.

        Raises:
            UserError: there is no champion, or it was the first.
        """
        _check(name, reason)
        return self._give(self.before(name), CHAMPION, "rollback", reason, self.holder(name, CHAMPION))

    def before(self, name: str) -> Version:
        """The version that was the champion before this one, as the log says.

        Raises:
            UserError: there is no champion, or it was the first.
        """
        champion = self.holder(name, CHAMPION)
        if champion is None:
            raise UserError(f"model {name!r}: it has no champion to take back. Promote one")
        before = [version for version in self._champions(name) if version != champion.version]
        if not before:
            raise UserError(f"model {name!r}: version {champion.version} is its first champion, before which was none")
        return self.version(name, before[-1])

    def versions(self, name: str) -> list[Version]:
        """All versions of a model, oldest first; none of a name that is not there."""
        if not self._names(name):
            return []
        aliases = self._asked(lambda: self.client.get_registered_model(name)).aliases
        found = self._asked(lambda: self.client.search_model_versions(f"name = '{name}'", max_results=10_000))
        return sorted((_version(one, aliases) for one in found), key=lambda version: version.version)

    def version(self, name: str, version: int) -> Version:
        """One of them.

        Raises:
            UserError: it is not there; names those that are.
        """
        there = self.versions(name)
        found = next((one for one in there if one.version == version), None)
        if found is None:
            has = f"it has 1 to {there[-1].version}" if there else "there is no such model"
            raise UserError(f"model {name!r}: no version {version}; {has}")
        return found

    def holder(self, name: str, alias: str) -> Version | None:
        """Who has an alias."""
        return next((version for version in self.versions(name) if alias in version.aliases), None)

    def seal(self, name: str, newest: str) -> None:
        """Keep the sha256 of the newest entry of the log that is of a model: `verify` misses it if it is cut off.

        Raises:
            ClusterError: MLflow is away.
        """
        self._asked(lambda: self.client.set_registered_model_tag(name, NEWEST, newest))

    def verify(self) -> list[str]:
        """What is wrong with the log, and where the registry is not what the log says; none: nothing."""
        newest = {}
        for model in self._asked(self.client.search_registered_models):
            newest[model.name] = model.tags.get(NEWEST, "")
        return self.log.verify() or self._apart(newest)

    def _champions(self, name: str) -> list[int]:
        """Who was champion before whom, the present one last, without those that were taken back."""
        line = list[int]()
        for entry in self.log.entries():
            of = entry.details
            if (of.get("model"), of.get("alias")) != (name, CHAMPION):
                continue
            if entry.what == "promote":
                line.append(of["version"])
            else:
                while line and line[-1] != of["version"]:
                    line.pop()
        return line

    def _apart(self, newest: Mapping[str, str]) -> list[str]:
        """Changes that were made beside the log, or of which the log knows no more."""
        problems, held = list[str](), dict[tuple[str, str], int | None]()
        models = dict[tuple[str, int], str]()
        there = self.log.digests()
        for name, sha in newest.items():
            if sha not in there:
                problems.append(
                    f"model {name!r}: its last change is not in the log: entries were cut off or altered, or are in "
                    "another --audit"
                )
        for entry in self.log.entries():
            if "alias" in entry.details:
                of = entry.details
                held[of["model"], of["alias"]] = None if entry.what == "withdraw" else of["version"]
                models[of["model"], of["version"]] = of.get("sha256", "")
        for name in newest:
            for alias in ALIASES:
                holder, said = self.holder(name, alias), held.get((name, alias))
                if (holder.version if holder else None) != said:
                    has = f"version {holder.version}" if holder else "nobody"
                    problems.append(f"model {name!r}: {has} is {alias}, but the log says {said or 'nobody'}")
                elif holder and holder.model != models[name, holder.version]:
                    problems.append(f"model {name!r}: version {holder.version} is another model than the log says")
                elif holder and (why := other_than_registered(holder) or _altered(holder)):
                    problems.append(f"model {name!r}: version {holder.version} {why}")
        return problems

    def _give(
        self, found: Version, alias: str, what: str, reason: str, holder: Version | None, gate: str = ""
    ) -> Version:
        details = {"model": found.name, "version": found.version, "alias": alias, "sha256": found.model}
        details |= {"gate": gate} if gate else {}
        self._logged(found.name, what, reason, details | {"from": holder.version if holder else None})
        self._asked(lambda: self.client.set_registered_model_alias(found.name, alias, str(found.version)))
        return self.version(found.name, found.version)

    def _logged(self, name: str, what: str, reason: str, details: Mapping[str, Any]) -> None:
        """Before the change itself: one that is logged and not made is seen by `verify`, and made by asking again."""
        self.seal(name, self.log.append(what, reason, details))

    def _names(self, name: str) -> bool:
        found = self._asked(lambda: self.client.search_registered_models(f"name = '{name}'"))
        return bool(found)

    def _asked(self, work: Any) -> Any:
        try:
            return work()
        except Exception as error:  # SQLAlchemy, requests and MLflow have no common root
            raise ClusterError(
                f"registry {mask_text(self.uri)!r}: MLflow did not do it ({briefly(error)}). Check that the "
                "folder is writable, or the server up"
            ) from error


def _client(uri: str) -> Any:
    from rtrain.tracking.mlflow_client import MlflowClient, quieten

    quieten()
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def other_than_registered(found: Version) -> str:
    """Why what lies where a version's export is said to be is not what was registered; empty: it is, or is away."""
    try:
        digest = sha256(Folder(found.export).read(HEAD)).hexdigest()
    except (OSError, RtrainError):
        return ""
    return "" if digest == found.model else f"is not what was registered: {found.export} has another export by now"


def _altered(found: Version) -> str:
    """Why its files are not those that its head names; empty: they are, or are away."""
    try:
        refuse_altered(found.export)
    except CheckpointError as error:
        return f"has altered files: {error}"
    except (OSError, RtrainError):
        pass
    return ""


def _check(name: str, reason: str) -> None:
    if not name or any(letter in name for letter in "/:'%\"\\") or not name.isprintable():
        raise UserError(f"model {name!r}: a name is printable, without / : % and quotes")
    if not reason.strip():
        raise UserError("reason: it is empty. Say why, for those who read the log")


def _version(one: Any, aliases: Mapping[str, Any]) -> Version:
    tags, number = dict(one.tags), int(one.version)
    held = tuple(alias for alias in ALIASES if alias in aliases and int(aliases[alias]) == number)
    model, run, step = tags.pop("model", ""), tags.pop("run", ""), int(tags.pop("step", 0))
    return Version(one.name, number, one.source.removeprefix(LOCAL), model, run, step, held, tags)


def _refuse_unjudged(found: Version, champion: Version | None) -> None:
    verdict = verdict_of(Finished.read(found.export))
    do = f"Judge it: rtrain gate {found.export}" + (f" --champion {champion.export}" if champion else "")
    where = f"model {found.name!r}: version {found.version}"
    if verdict is None or verdict.model != found.model:
        raise UserError(f"{where} was not judged as it is now. {do}")
    if not verdict.passed:
        refused = next(one for one in verdict.decisions if not one.passed)
        raise UserError(
            f"{where} did not pass its gate ({refused.check}: {refused.said}). {do.replace(':', ' anew:', 1)}"
        )
    against = verdict.champion["model"] if verdict.champion else None
    if champion and against != champion.model:
        raise UserError(f"{where} was not judged against the champion, version {champion.version}. {do}")
