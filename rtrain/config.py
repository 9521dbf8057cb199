"""The config kernel: plain frozen dataclasses, one override path, flatten, diff, JSON.

A config is a tree of frozen keyword-only dataclasses. Its leaves are addressed by dotted keys
(`optim.lr`, `metrics.1.k`), the same on the command line, in `ray job submit`, in Tune and in a
notebook. Nothing is registered anywhere: a field that the dataclass does not have is an error.
"""

import dataclasses
import difflib
import json
import sys
import types
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import PurePath
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from rtrain.errors import ConfigError, did_you_mean

T = TypeVar("T")

TYPE_KEY = "$type"
MOVED = {
    "rtrain.training.trackers": "rtrain.tracking",
    "rtrain.objectives.candidates:BPR": "rtrain.objectives.bpr:BPR",
    "rtrain.objectives.candidates:InBatchSoftmax": "rtrain.objectives.in_batch_softmax:InBatchSoftmax",
    "rtrain.objectives.candidates:SampledBinary": "rtrain.objectives.sampled_binary:SampledBinary",
    "rtrain.objectives.candidates:SampledSoftmax": "rtrain.objectives.sampled_softmax:SampledSoftmax",
}
"""Packages and classes that have had another name: configs stored by an older version name their classes by it."""


def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _fields(config: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(config) if f.init]


def is_config(value: object) -> bool:
    """True for an instance (not the class) of a dataclass."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def override(config: T, changes: Mapping[str, object]) -> T:
    """A copy of `config` with the leaves (or whole children) at dotted keys replaced.

    Values may be Python objects or the strings of a command line; both are coerced to the
    field's declared type: `"3e-4"` -> 0.0003, `"1,2"` -> (1, 2), `"none"` -> None.
    Every `__post_init__` on the way up runs again, so cross-field checks hold for the result.

    Raises:
        ConfigError: unknown key (with the closest known one) or a value of the wrong type.
    """
    for key in changes:
        head = key.partition(".")[0]
        if is_config(config) and head not in _fields(config):
            raise ConfigError(f"{head}: {type(config).__name__} has no field {head!r}{_nearest(config, key)}")
    changed: T = _set(config, type(config), [(key.split("."), value, key) for key, value in changes.items()])
    return changed


def _nearest(config: object, key: str) -> str:
    """The closest dotted key, also of a field that lies deeper: `lr` may mean `optim.lr`."""
    if "." in key:
        return did_you_mean(key.partition(".")[0], _fields(config)) or f". Its fields: {', '.join(_fields(config))}"
    keys = [known for known in flatten(config) if known and not known.endswith(TYPE_KEY)]
    last = key.rpartition(".")[2]
    ends = f"_{last}"  # `batch` may mean `global_batch`
    same = [k for k in keys if last == k.rpartition(".")[2] or ("." not in k and k.endswith(ends))]
    if same:
        return f"; did you mean {' or '.join(map(repr, same[:3]))}?"
    near = did_you_mean(key, _fields(config))
    if near:
        return near
    leaves = {known.rpartition(".")[2]: known for known in reversed(keys)}
    tail = last.rpartition("_")[2]  # `max_steps` may mean `duration.steps`
    close = [tail] if tail in leaves else difflib.get_close_matches(last, leaves, n=1, cutoff=0.75)
    return f"; did you mean {leaves[close[0]]!r}?" if close else f". Its fields: {', '.join(_fields(config))}"


def _set(node: Any, declared: Any, changes: list[tuple[list[str], object, str]]) -> Any:
    """`node` with (path below it, value, whole key) applied at once, so that its checks see all of them."""
    new: dict[str, Any] = {}
    for head in dict.fromkeys(path[0] for path, _, _ in changes):
        inside = [(path[1:], value, key) for path, value, key in changes if path[0] == head]
        rest, _, key = inside[0]
        where = key if not rest else key[: -len("." + ".".join(rest))]
        child, hint = _child(node, declared, head, where)
        below: list[tuple[list[str], object, str]] = []
        for rest, value, key in inside:
            if rest:
                below.append((rest, value, key))
            else:  # a whole child; what was set in the one before is gone with it
                child, below = coerce(value, hint, key), []
        new[head] = _set(child, hint, below) if below else child
    if isinstance(node, tuple):
        return tuple(new.get(str(index), item) for index, item in enumerate(node))
    return dataclasses.replace(node, **new) if new else node


def _child(node: Any, declared: Any, head: str, where: str) -> tuple[Any, Any]:
    """What stands at `head` of a config or of a tuple, and its declared type."""
    if isinstance(node, tuple):
        if head not in map(str, range(len(node))):
            raise ConfigError(f"{where}: there are {len(node)} items here, so the index must be 0..{len(node) - 1}")
        return node[int(head)], _item(declared, int(head))
    if not is_config(node):
        owner = where.rpartition(".")[0]
        if node is None:
            raise ConfigError(f"{where}: {owner} is none, which has no fields. Give {owner} as a whole, in the recipe")
        raise ConfigError(f"{where}: {owner} is a plain value, it has no fields")
    known = _fields(node)
    if head not in known:
        near = did_you_mean(head, known) or ". Its fields: " + (", ".join(known) or "none")
        raise ConfigError(f"{where}: {type(node).__name__} has no field {head!r}{near}")
    return getattr(node, head), _hints(type(node))[head]


def _item(hint: Any, index: int) -> Any:
    """The declared type of a tuple's item at `index`."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if get_origin(option) is tuple:
            args = get_args(option)
            return args[0] if args[-1] is Ellipsis else args[index]
    return Any


def coerce(value: object, hint: Any, where: str) -> Any:
    """`value` as the declared type `hint`; strings are read as a command line gives them.

    Raises:
        ConfigError: `optim.lr: expected float, got 'fast' (str)`.
    """
    if isinstance(value, str):
        value = _from_text(value, hint)
    problem = _mismatch(value, hint)
    if problem is None:
        return float(value) if hint is float and type(value) is int else value
    if isinstance(value, Mapping):
        # pydantic would make a config of it, and leave out without a word the keys that it does not know.
        raise ConfigError(f"{where}: expected {spell(hint)}, got {value!r} (dict). Give each field its own key")
    try:
        if isinstance(value, bool):  # pydantic would take it for the number 1 or 0
            raise ConfigError(where)
        return _adapter(hint).validate_python(value)
    except (ValidationError, ConfigError, PydanticSchemaGenerationError):
        near = ". Write one in the recipe" if only_python(hint) else _nearest_choice(value, hint)
        raise ConfigError(f"{where}: expected {spell(hint)}, got {value!r} ({type(value).__name__}){near}") from None


def only_python(hint: Any) -> bool:
    """Whether no command line can write a value: a class of its own, not numbers and words."""
    protocol = getattr(hint, "_is_protocol", False)  # typing.is_protocol from Python 3.13 on
    return dataclasses.is_dataclass(hint) or protocol or any(map(only_python, get_args(hint)))


def _nearest_choice(value: object, hint: Any) -> str:
    """The word nearest to one that is none of those that the type lists."""
    options = [hint, *get_args(hint)] if get_origin(hint) is not Literal else [hint]
    choices = [choice for option in options if get_origin(option) is Literal for choice in get_args(option)]
    wrong = [word for word in (value if isinstance(value, tuple) else (value,)) if word not in choices]
    return did_you_mean(wrong[0], map(str, choices)) if wrong and isinstance(wrong[0], str) else ""


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def _from_text(text: str, hint: Any) -> object:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if type(None) in options and text.lower() in ("none", "null"):
        return None
    if str in options or hint is Any:
        return text
    for option in options:
        if get_origin(option) is tuple and not text.startswith("["):
            parts = [p.strip() for p in text.split(",")] if text else []
            if len(options) == 1 or len(parts) > 1:
                return tuple(_from_text(p, get_args(option)[0]) for p in parts)
        if get_origin(option) is Literal:
            for choice in get_args(option):
                if str(choice) == text:
                    return choice
    if text.startswith(("[", "{")):
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text
    return text


def _mismatch(value: Any, hint: Any) -> str | None:
    """None when `value` already has the declared type, else what the type should be."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return None
    if origin in (Union, types.UnionType):
        return None if any(_mismatch(value, a) is None for a in args) else spell(hint)
    if origin is Literal:
        return None if any(value == a and type(value) is type(a) for a in args) else spell(hint)
    if origin is tuple:
        if not isinstance(value, tuple):
            return spell(hint)
        inner = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
        wrong = len(inner) != len(value) or any(_mismatch(v, a) for v, a in zip(value, inner, strict=False))
        return spell(hint) if wrong else None
    if origin is not None:
        return None if isinstance(value, origin) else spell(hint)
    if hint is float:
        return None if isinstance(value, int | float) and not isinstance(value, bool) else spell(hint)
    if hint is int:
        return None if isinstance(value, int) and not isinstance(value, bool) else spell(hint)
    if hint is None:
        return None if value is None else spell(hint)
    return None if isinstance(value, hint) else spell(hint)


def spell(hint: Any) -> str:
    """A type as a person writes it: `int | none`, `one of 'zero', 'ddp'`, `list of float`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " | ".join(spell(a) for a in args)
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in args)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return f"list of {spell(args[0])}"
        return "(" + ", ".join(spell(a) for a in args) + ")"
    if hint is type(None):
        return "none"
    return getattr(hint, "__name__", str(hint))


def validate(config: object, where: str = "") -> None:
    """Check every field of the tree against its declared type.

    Python does not check dataclass arguments; this does, once, before a run starts.

    Raises:
        ConfigError: the first field of the wrong type, by its dotted key.
    """
    hints = _hints(type(config))
    for name in _fields(config):
        value, hint = getattr(config, name), hints[name]
        key = f"{where}.{name}" if where else name
        expected = _mismatch(value, hint)
        if expected is not None:
            raise ConfigError(f"{key}: expected {expected}, got {value!r} ({type(value).__name__})")
        children = enumerate(value) if isinstance(value, tuple) else [(None, value)]
        for index, child in children:
            if is_config(child):
                validate(child, key if index is None else f"{key}.{index}")


def explain(error: TypeError) -> None:
    """Say which field is of the wrong type where that made a config's own checks trip, before `validate` could look.

    Raises:
        ConfigError: the field, its type and its value; nothing where the error has another cause.
    """
    trace = error.__traceback__
    while trace is not None:
        config = trace.tb_frame.f_locals.get("self")
        if trace.tb_frame.f_code.co_name == "__post_init__" and is_config(config):
            validate(config, type(config).__name__)
        trace = trace.tb_next


def flatten(config: object, where: str = "") -> dict[str, Any]:
    """Dotted key -> plain value, in field order; a child config adds its class as `key.$type`."""
    flat: dict[str, Any] = {}
    if is_config(config):
        flat[f"{where}.{TYPE_KEY}" if where else TYPE_KEY] = type(config).__name__
        items = [(name, getattr(config, name)) for name in _fields(config)]
    elif isinstance(config, tuple) and any(is_config(c) for c in config):
        items = [(str(i), c) for i, c in enumerate(config)]
    else:
        return {where: list(config) if isinstance(config, tuple) else config}
    for name, value in items:
        flat.update(flatten(value, f"{where}.{name}" if where else name))
    return flat


def diff(before: object, after: object) -> list[str]:
    """What changed between two configs, one line a key: `optim.lr: 0.0003 -> 0.0011`."""
    a, b = flatten(before), flatten(after)
    keys = list(a) + [k for k in b if k not in a]
    absent = "(absent)"
    return [f"{k}: {a.get(k, absent)} -> {b.get(k, absent)}" for k in keys if a.get(k, absent) != b.get(k, absent)]


def to_dict(config: Any) -> Any:
    """A JSON-ready tree; each child config carries `$type`, its importable class."""
    if is_config(config):
        cls = type(config)
        return {TYPE_KEY: f"{cls.__module__}:{cls.__qualname__}"} | {
            name: to_dict(getattr(config, name)) for name in _fields(config)
        }
    if isinstance(config, tuple | list):
        return [to_dict(c) for c in config]
    if isinstance(config, PurePath):
        return str(config)
    if isinstance(config, Mapping):
        return {str(k): to_dict(v) for k, v in config.items()}
    return config


def from_dict(tree: Any) -> Any:
    """The config that `to_dict` wrote.

    Classes are resolved only within rtrain or among modules that this process has imported
    already: a stored file can never make rtrain import code.

    Raises:
        ConfigError: a class that may not be or cannot be resolved, or a field it does not have.
    """
    if isinstance(tree, list):
        return tuple(from_dict(t) for t in tree)
    if not isinstance(tree, dict):
        return tree
    if TYPE_KEY not in tree:
        return {k: from_dict(v) for k, v in tree.items()}
    cls = _resolve(tree[TYPE_KEY])
    values = {k: from_dict(v) for k, v in tree.items() if k != TYPE_KEY}
    if hasattr(cls, "of_older"):
        values = cls.of_older(values)
    unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
    if unknown:
        raise ConfigError(f"{tree[TYPE_KEY]}: the stored config has fields that this version does not: {unknown}")
    try:
        return cls(**values)
    except TypeError as error:  # a field missing, or of a type that the class's own checks trip over
        raise ConfigError(f"{tree[TYPE_KEY]}: the stored config does not fit this version: {error}") from None


def _resolve(path: object) -> Any:
    spelled = str(path)
    for before, now in MOVED.items():
        if spelled == before or spelled.startswith((f"{before}.", f"{before}:")):
            spelled = now + spelled.removeprefix(before)
    module, _, name = spelled.partition(":")
    if (module == "rtrain" or module.startswith("rtrain.")) and "__main__" not in module:  # to import that is to run it
        try:
            import_module(module)
        except ModuleNotFoundError:
            raise ConfigError(f"{path}: the stored config names a module that this rtrain does not have") from None
    elif module not in sys.modules:
        raise ConfigError(
            f"{path}: the stored config names a class outside rtrain. Import {module!r} first "
            f"(a command: --module {module})"
        )
    target: Any = sys.modules[module]
    for part in name.split("."):
        target = getattr(target, part, None)
    if not (isinstance(target, type) and dataclasses.is_dataclass(target)):
        raise ConfigError(f"{path}: the stored config names something that is not a config class")
    return target
