"""An event log's columns, and what its events are called."""

from dataclasses import asdict, dataclass, field, fields

from rtrain.errors import ConfigError, DataError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What the log's columns are called. An empty name: by default, if the log has such a one (see `OPTIONAL`)."""

    session: str = "session_id"
    event: str = "event"
    time: str = "timestamp"
    query: str = ""
    item: str = ""
    results: str = ""
    unit: str = ""
    """Whose events are independent of others': the user, where an experiment was drawn by user. Empty: the session."""
    by: tuple[str, ...] = ()
    """Columns whose values make groups."""

    def __post_init__(self) -> None:
        for name in ("session", "event", "time"):
            if not getattr(self, name):
                raise ConfigError(f"--{name}: give the name of a column")
        if "" in self.by or len(set(self.by)) < len(self.by):
            raise ConfigError(f"--by: give each column once, got {', '.join(map(repr, self.by))}")


OPTIONAL = {"query": "query_id", "item": "item_id", "results": "results"}


@dataclass(frozen=True, kw_only=True)
class Events:
    """What the log calls each kind of event."""

    impression: tuple[str, ...] = ("impression", "view")
    click: tuple[str, ...] = ("click",)
    add_to_cart: tuple[str, ...] = ("add_to_cart",)
    purchase: tuple[str, ...] = ("purchase",)
    search: tuple[str, ...] = ("search",)
    other: tuple[str, ...] = field(default=())
    """Events of none of these kinds; they count as engagement, and as something after an impression."""

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for kind, names in asdict(self).items():
            for name in names:
                if name in seen:
                    raise ConfigError(f"events: {name!r} is given twice, by {option(seen[name])} and {option(kind)}")
                seen[name] = kind

    @property
    def kinds(self) -> dict[str, str]:
        """The kind of each event's name."""
        return {name: kind for kind, names in asdict(self).items() for name in names}


KINDS = tuple(f.name for f in fields(Events))


def option(kind: str) -> str:
    """The command line's option of a kind of event, or of a column."""
    return "--" + kind.replace("_", "-")


def check_columns(uri: str, columns: Columns, known: list[str]) -> None:
    """See that each column that was named is there.

    Raises:
        DataError: it is not.
    """
    for role, name in asdict(columns).items():
        for given in name if role == "by" else filter(None, [name]):
            if given not in known:
                near = did_you_mean(given, known) or f". The columns are {', '.join(known)}"
                raise DataError(f"{uri}: column {given!r} ({option(role)}) is missing{near}")
