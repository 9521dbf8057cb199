from dataclasses import dataclass
from typing import Literal

import pytest

from recipes.dlrm_movielens import run
from rtrain import config
from rtrain.errors import ConfigError, DataError, did_you_mean, one_line


@dataclass(frozen=True, kw_only=True)
class Leaf:
    lr: float = 0.1
    steps: int | None = None
    mode: Literal["a", "b", 3] = "a"
    sizes: tuple[int, ...] = (1,)
    words: tuple[str, ...] = ()
    on: bool = False


@dataclass(frozen=True, kw_only=True)
class Tree:
    name: str = "t"
    leaf: Leaf = Leaf()
    leaves: tuple[Leaf, ...] = (Leaf(), Leaf(lr=0.2))

    def __post_init__(self) -> None:
        if self.name == "forbidden":
            raise ConfigError("name: forbidden")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("leaf.lr", "3e-4", 3e-4),
        ("leaf.lr", 1, 1.0),
        ("leaf.steps", "7", 7),
        ("leaf.steps", "none", None),
        ("leaf.mode", "b", "b"),
        ("leaf.mode", "3", 3),
        ("leaf.sizes", "4,5", (4, 5)),
        ("leaf.sizes", "[4, 5]", (4, 5)),
        ("leaf.sizes", "4", (4,)),
        ("leaf.sizes", "", ()),
        ("leaf.words", "x, y", ("x", "y")),
        ("leaf.on", "true", True),
        ("leaf.on", False, False),
        ("leaves.1.lr", "5", 5.0),
        ("name", "3", "3"),
    ],
)
def test_override(key: str, value: object, expected: object) -> None:
    changed = config.override(Tree(), {key: value})
    flat = config.flatten(changed)[key]
    assert (tuple(flat) if isinstance(flat, list) else flat) == expected
    assert type(flat) is type(list(expected) if isinstance(expected, tuple) else expected)
    assert Tree() == Tree(), "the original is untouched"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("leaf.lrr", "1", "leaf.lrr: Leaf has no field 'lrr'; did you mean 'lr'?"),
        ("laef.lr", "1", "laef: Tree has no field 'laef'; did you mean 'leaf'?"),
        ("zzz", "1", "zzz: Tree has no field 'zzz'. Its fields: name, leaf, leaves"),
        ("leaf.lr", "fast", "leaf.lr: expected float, got 'fast' (str)"),
        ("leaf.lr", True, "leaf.lr: expected float, got True (bool)"),
        ("leaf.steps", "1.5", "leaf.steps: expected int | none, got '1.5' (str)"),
        ("leaf.mode", "c", "leaf.mode: expected one of 'a', 'b', 3, got 'c' (str)"),
        ("leaf.sizes", "1,x", "leaf.sizes: expected list of int, got ('1', 'x') (tuple)"),
        ("leaf.lr.deep", "1", "leaf.lr.deep: leaf.lr is a plain value, it has no fields"),
        ("leaves.2.lr", "1", "leaves.2: there are 2 items here, so the index must be 0..1"),
        ("leaf", "x", "leaf: expected Leaf, got 'x' (str)"),
    ],
)
def test_override_refuses_in_one_line(key: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config.override(Tree(), {key: value})
    assert str(raised.value) == said


def test_cross_field_checks_hold_for_the_result() -> None:
    with pytest.raises(ConfigError, match="name: forbidden"):
        config.override(Tree(), {"name": "forbidden"})


def test_a_whole_child_may_be_replaced() -> None:
    assert config.override(Tree(), {"leaf": Leaf(lr=9.0)}).leaf.lr == 9.0


def test_validate_names_the_field() -> None:
    config.validate(Tree())
    with pytest.raises(ConfigError, match=r"leaves\.1\.lr: expected float, got 'x' \(str\)"):
        config.validate(Tree(leaves=(Leaf(), Leaf(lr="x"))))  # type: ignore[arg-type]


def test_diff() -> None:
    assert config.diff(Tree(), Tree()) == []
    changed = config.override(Tree(), {"leaf.lr": 0.5, "leaves.0.sizes": (2, 3)})
    assert config.diff(Tree(), changed) == ["leaf.lr: 0.1 -> 0.5", "leaves.0.sizes: [1] -> [2, 3]"]
    shorter = Tree(leaves=(Leaf(),))
    assert "leaves.1.lr: 0.2 -> (absent)" in config.diff(Tree(), shorter)


def test_json_round_trip_of_the_recipe() -> None:
    import json

    tree = json.loads(json.dumps(config.to_dict(run())))
    assert config.from_dict(tree) == run()
    assert not config.diff(config.from_dict(tree), run())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("antigravity:x", "a class outside rtrain. Import 'antigravity' first"),
        ("os:system", "not a config class"),
        ("rtrain.nosuch:X", "a module that this rtrain does not have"),
        ("rtrain.errors:ConfigError", "not a config class"),
    ],
)
def test_a_stored_file_never_makes_rtrain_import_code(kind: str, said: str) -> None:
    import sys

    with pytest.raises(ConfigError, match=said):
        config.from_dict({"$type": kind})
    assert "antigravity" not in sys.modules


def test_a_stored_field_that_is_gone_is_named() -> None:
    tree = config.to_dict(run()) | {"gone": 1}
    with pytest.raises(ConfigError, match=r"fields that this version does not: \['gone'\]"):
        config.from_dict(tree)


def test_errors_survive_the_way_between_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(DataError("x.parquet: cut off")))
    assert (type(error), str(error), error.exit_code) == (DataError, "x.parquet: cut off", 2)
    assert one_line(DataError("a\n  b")) == "a b"
    assert one_line(ValueError("a\nb")) == "ValueError: a b"
    assert did_you_mean("lrr", ["lr", "eps"]) == "; did you mean 'lr'?"
    assert did_you_mean("qqq", ["lr"]) == ""
