"""The config kernel: one override path, types checked by dotted key, and a JSON form that imports no code."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import pytest

import rtrain
from recipes.dlrm_movielens import debug, run
from rtrain.config import TYPE_KEY, coerce, diff, flatten, from_dict, override, spell, to_dict, validate
from rtrain.errors import ConfigError
from rtrain.metrics import AUC, NDCG
from rtrain.optim import SGD, AdamW


@dataclass(frozen=True, kw_only=True)
class Leaf:
    size: int = 3
    ratio: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Tree:
    leaf: Leaf = Leaf()
    other: Leaf | None = None
    leaves: tuple[Leaf, ...] = (Leaf(), Leaf(size=4))
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[float, str] = (1.0, "a")
    maybe: tuple[int, ...] | None = (1, 2)
    words: tuple[str, ...] = ("a",)
    flag: bool = False
    stage: Literal[0, 1, 2] = 1
    mode: Literal["fast", "slow"] = "fast"
    limit: float | None = None
    count: int | None = None
    text: str = "x"
    label: str | None = "x"
    anything: Any = None


def refused(config: Any, key: str, value: object) -> str:
    with pytest.raises(ConfigError) as caught:
        override(config, {key: value})
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("leaf.ratio", "3e-4", 0.0003),
        ("leaf.ratio", "2", 2.0),
        ("leaf.ratio", 2, 2.0),
        ("leaf.ratio", 0.25, 0.25),
        ("leaf.size", "7", 7),
        ("leaf.size", "-7", -7),
        ("leaf.size", 7, 7),
        ("leaf.size", 7.0, 7),
        ("leaves.1.size", "9", 9),
        ("leaves.0.ratio", "9", 9.0),
        ("sizes", "4,5", (4, 5)),
        ("sizes", "4, 5, 6", (4, 5, 6)),
        ("sizes", "4", (4,)),
        ("sizes", "", ()),
        ("sizes", "[4, 5]", (4, 5)),
        ("sizes", [4, 5], (4, 5)),
        ("sizes", (4, 5), (4, 5)),
        ("sizes.1", "8", 8),
        ("sizes.0", 8, 8),
        ("pair", "2,b", (2.0, "b")),
        ("pair.0", "2", 2.0),
        ("pair.1", "2", "2"),
        ("maybe", "none", None),
        ("maybe", "3,4", (3, 4)),
        ("maybe.1", "5", 5),
        ("words", "a,b", ("a", "b")),
        ("words.0", "none", "none"),
        ("flag", "true", True),
        ("flag", "False", False),
        ("flag", "1", True),
        ("flag", "no", False),
        ("flag", True, True),
        ("stage", "2", 2),
        ("stage", 2, 2),
        ("mode", "slow", "slow"),
        ("limit", "none", None),
        ("limit", "None", None),
        ("limit", "null", None),
        ("limit", None, None),
        ("limit", "1.5", 1.5),
        ("count", "12", 12),
        ("count", "none", None),
        ("text", "none", "none"),
        ("text", "[1, 2]", "[1, 2]"),
        ("label", "none", None),
        ("label", "word", "word"),
        ("anything", "[1, 2]", "[1, 2]"),
    ],
)
def test_override_reads_a_value_as_the_declared_type(key: str, given: object, expected: object) -> None:
    found: Any = override(Tree(), {key: given})
    for part in key.split("."):
        found = found[int(part)] if isinstance(found, tuple) else getattr(found, part)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("key", "given", "message"),
    [
        ("leaf.ratio", "fast", "leaf.ratio: expected float, got 'fast' (str)"),
        ("leaf.size", "3.5", "leaf.size: expected int, got '3.5' (str)"),
        ("leaf.size", 3.5, "leaf.size: expected int, got 3.5 (float)"),
        ("leaf.size", None, "leaf.size: expected int, got None (NoneType)"),
        ("leaf.size", "none", "leaf.size: expected int, got 'none' (str)"),
        ("leaf", "x", "leaf: expected Leaf, got 'x' (str). Write one in the recipe"),
        ("flag", "maybe", "flag: expected bool, got 'maybe' (str)"),
        ("flag", 2, "flag: expected bool, got 2 (int)"),
        ("stage", "3", "stage: expected one of 0, 1, 2, got '3' (str)"),
        ("mode", "FAST", "mode: expected one of 'fast', 'slow', got 'FAST' (str); did you mean 'fast'?"),
        ("limit", "much", "limit: expected float | none, got 'much' (str)"),
        ("count", "1e3", "count: expected int | none, got '1e3' (str)"),
        ("sizes", "a,b", "sizes: expected list of int, got ('a', 'b') (tuple)"),
        ("sizes", "[1,", "sizes: expected list of int, got '[1,' (str)"),
        ("sizes", 5, "sizes: expected list of int, got 5 (int)"),
        ("sizes.1", "x", "sizes.1: expected int, got 'x' (str)"),
        ("pair", "1", "pair: expected (float, str), got ('1',) (tuple)"),
        ("text", 3, "text: expected str, got 3 (int)"),
        ("leaves.0", "5", "leaves.0: expected Leaf, got '5' (str). Write one in the recipe"),
        ("leaves.2.size", "5", "leaves.2: there are 2 items here, so the index must be 0..1"),
        ("leaves.-1.size", "5", "leaves.-1: there are 2 items here, so the index must be 0..1"),
        ("leaves.x", "5", "leaves.x: there are 2 items here, so the index must be 0..1"),
        ("leaves.²", "5", "leaves.²: there are 2 items here, so the index must be 0..1"),
        ("leaf.sise", "1", "leaf.sise: Leaf has no field 'sise'; did you mean 'size'?"),
        ("leaves.0.ration", "1", "leaves.0.ration: Leaf has no field 'ration'; did you mean 'ratio'?"),
        ("leaf.qqq", "1", "leaf.qqq: Leaf has no field 'qqq'. Its fields: size, ratio"),
        ("lef.size", "1", "lef: Tree has no field 'lef'; did you mean 'leaf'?"),
        ("text.size", "1", "text.size: text is a plain value, it has no fields"),
        ("leaf.size.a", "1", "leaf.size.a: leaf.size is a plain value, it has no fields"),
    ],
)
def test_override_refuses_with_the_key_the_type_and_the_value(key: str, given: object, message: str) -> None:
    assert refused(Tree(), key, given) == message


def test_override_leaves_the_original_and_everything_else_as_it_was() -> None:
    before = run()
    after = override(before, {"optim.schedule.warmup_steps": "5", "metrics.2.k": 3})
    assert before == run()
    assert diff(before, after) == ["optim.schedule.warmup_steps: 0 -> 5", "metrics.2.k: 10 -> 3"]
    assert after.data is before.data


def test_override_replaces_a_whole_child() -> None:
    after = override(run(), {"sparse_optim": SGD(lr=0.5), "metrics.2": NDCG(k=4), "metrics.0": AUC()})
    assert after.sparse_optim == SGD(lr=0.5)
    assert after.metrics[2] == NDCG(k=4)
    assert refused(run(), "sparse_optim", AdamW()).startswith("sparse_optim: expected SparseOptim, got AdamW(")


def test_an_override_runs_the_checks_of_every_config_above_the_leaf() -> None:
    assert refused(run(), "optim.lr", "-1") == "optim.lr: must be positive, got -1.0"
    # The check sits in Handoff for the first key and in Run for the second.
    assert "needs handoff.export" in refused(run(), "handoff.export", "false")
    assert "'ndcg@10' is not among the metrics: auc, log_loss, ndcg@5" in refused(
        override(run(), {"evaluation.monitor": "ndcg@10"}), "metrics.2.k", "5"
    )


def test_coerce_keeps_a_value_that_fits() -> None:
    leaf = Leaf()
    assert coerce(leaf, Leaf, "leaf") is leaf
    assert coerce(leaf, Leaf | None, "leaf") is leaf


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int | None, "int | none"),
        (Literal["a", 2], "one of 'a', 2"),
        (tuple[float, ...], "list of float"),
        (tuple[int, str], "(int, str)"),
        (Leaf, "Leaf"),
    ],
)
def test_spell_names_a_type_as_a_person_does(hint: Any, text: str) -> None:
    assert spell(hint) == text


def test_validate_accepts_the_recipe_and_an_int_where_a_float_is_declared() -> None:
    validate(run())
    validate(debug())
    validate(Tree(leaf=Leaf(ratio=1), other=Leaf(), limit=2))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Tree(text=3), "text: expected str, got 3 (int)"),  # type: ignore[arg-type]
        (Tree(leaf=Leaf(size="3")), "leaf.size: expected int, got '3' (str)"),  # type: ignore[arg-type]
        (Tree(leaf=Leaf(size=True)), "leaf.size: expected int, got True (bool)"),
        (Tree(leaf=Leaf(ratio=False)), "leaf.ratio: expected float, got False (bool)"),
        (Tree(flag=1), "flag: expected bool, got 1 (int)"),  # type: ignore[arg-type]
        (Tree(stage=True), "stage: expected one of 0, 1, 2, got True (bool)"),  # type: ignore[arg-type]
        (Tree(sizes=[1]), "sizes: expected list of int, got [1] (list)"),  # type: ignore[arg-type]
        (Tree(sizes=(1, "2")), "sizes: expected list of int, got (1, '2') (tuple)"),  # type: ignore[arg-type]
        (Tree(pair=(1.0,)), "pair: expected (float, str), got (1.0,) (tuple)"),  # type: ignore[arg-type]
        (Tree(leaves=(Leaf(), Leaf(size=None))), "leaves.1.size: expected int, got None (NoneType)"),  # type: ignore[arg-type]
        (Tree(other=Leaf(size="3")), "other.size: expected int, got '3' (str)"),  # type: ignore[arg-type]
        (Tree(leaf=None), "leaf: expected Leaf, got None (NoneType)"),  # type: ignore[arg-type]
        (Tree(maybe="1"), "maybe: expected list of int | none, got '1' (str)"),  # type: ignore[arg-type]
    ],
)
def test_validate_names_the_first_field_of_the_wrong_type(config: Tree, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert str(caught.value) == message


def test_flatten_gives_dotted_keys_in_field_order() -> None:
    @dataclass(frozen=True)
    class Small:
        leaf: Leaf
        leaves: tuple[Leaf, ...]
        sizes: tuple[int, ...]

    assert list(flatten(Small(Leaf(), (Leaf(size=9),), (1, 2))).items()) == [
        ("$type", "Small"),
        ("leaf.$type", "Leaf"),
        ("leaf.size", 3),
        ("leaf.ratio", 0.5),
        ("leaves.0.$type", "Leaf"),
        ("leaves.0.size", 9),
        ("leaves.0.ratio", 0.5),
        ("sizes", [1, 2]),
    ]


def test_every_flattened_leaf_of_the_recipe_can_be_overridden_with_its_own_value() -> None:
    config = run()
    leaves = {key: value for key, value in flatten(config).items() if not key.endswith(TYPE_KEY)}
    assert len(leaves) > 80
    assert override(config, leaves) == config


def test_diff_shows_changed_added_and_absent_leaves() -> None:
    assert diff(run(), run()) == []
    assert diff(Tree(), Tree(text="y", sizes=(3,), leaves=(Leaf(size=1),))) == [
        "leaves.0.size: 3 -> 1",
        "leaves.1.$type: Leaf -> (absent)",
        "leaves.1.size: 4 -> (absent)",
        "leaves.1.ratio: 0.5 -> (absent)",
        "sizes: [1, 2] -> [3]",
        "text: x -> y",
    ]
    assert diff(Tree(), Tree(other=Leaf()))[-3:] == [
        "other.$type: (absent) -> Leaf",
        "other.size: (absent) -> 3",
        "other.ratio: (absent) -> 0.5",
    ]


@pytest.mark.parametrize("make", [run, debug])
def test_the_recipe_survives_json(make: Any) -> None:
    config = make()
    tree = json.loads(json.dumps(to_dict(config)))
    assert tree[TYPE_KEY] == "rtrain.run:Run"
    assert tree["model"][TYPE_KEY] == "rtrain.models.dlrm:DLRM"
    again = from_dict(tree)
    assert again == config
    assert diff(config, again) == []
    validate(again)


def test_json_keeps_what_an_override_changed() -> None:
    config = override(run(), {"sparse_optim": SGD(lr=0.5), "optim.betas": "0.8,0.9", "duration.steps": "7"})
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_to_dict_writes_paths_and_mappings_as_plain_json() -> None:
    assert to_dict({1: PurePosixPath("a/b"), "x": (1, [2])}) == {"1": "a/b", "x": [1, [2]]}
    assert from_dict({"1": "a/b", "x": [1, [2]]}) == {"1": "a/b", "x": (1, (2,))}


def test_from_dict_resolves_a_class_of_a_module_that_is_imported() -> None:
    tree = to_dict(Leaf(size=8))
    assert tree == {TYPE_KEY: f"{__name__}:Leaf", "size": 8, "ratio": 0.5}
    assert from_dict(tree) == Leaf(size=8)


def test_from_dict_never_imports_a_module_outside_rtrain(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stored_elsewhere.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as caught:
        from_dict({TYPE_KEY: "stored_elsewhere:Thing"})
    assert "names a class outside rtrain. Import 'stored_elsewhere' first" in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("os:system", "something that is not a config class"),
        ("builtins:eval", "something that is not a config class"),
        ("rtrain.config:override", "something that is not a config class"),
        ("rtrain.errors:ConfigError", "something that is not a config class"),
        ("rtrain.optim:Missing", "something that is not a config class"),
        ("rtrain.optim", "something that is not a config class"),
        ("rtrain.optim:AdamW.lr.real", "something that is not a config class"),
        ("rtrain.gone:Thing", "a module that this rtrain does not have"),
        ("rtrain_other:Thing", "names a class outside rtrain"),
        (":Thing", "names a class outside rtrain"),
    ],
)
def test_from_dict_refuses_what_is_no_config_class(path: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict({TYPE_KEY: path})
    assert str(caught.value).startswith(f"{path}: the stored config names ")
    assert message in str(caught.value)


def test_from_dict_refuses_a_field_of_another_version_at_any_depth() -> None:
    tree = to_dict(run())
    tree["optim"]["nesterov"] = True
    with pytest.raises(ConfigError, match=r"rtrain.optim:AdamW: .* fields that this version does not: \['nesterov'\]"):
        from_dict(tree)


def test_from_dict_runs_the_checks_of_the_config() -> None:
    tree = to_dict(run())
    tree["optim"]["lr"] = -1.0
    with pytest.raises(ConfigError, match="optim.lr: must be positive"):
        from_dict(tree)


def test_the_public_override_is_this_one() -> None:
    assert rtrain.override(run(), {"seed": "4"}) == dataclasses.replace(run(), seed=4)
