"""What keeps the house readable, beyond imports: nobody asks for a kind of model or data, nothing grows too long."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "rtrain"
FILES = sorted(ROOT.rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 400, 80
KINDS_LIVE_IN = ("models", "objectives", "data", "training/replica.py")


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in FILES:
        yield path, ast.parse(path.read_text())


def is_kind(path: Path) -> bool:
    return any(str(path.relative_to(ROOT)).startswith(home) for home in KINDS_LIVE_IN)


def classes(tree: ast.Module) -> set[str]:
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def asked(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of each class that something is asked for: by `isinstance`, by its type, or in a `match`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            yield from named(node.args[1])
        elif isinstance(node, ast.MatchClass):
            yield from named(node.cls)
        elif isinstance(node, ast.Compare) and any(is_type_of(side) for side in (node.left, *node.comparators)):
            for side in (node.left, *node.comparators):
                if not is_type_of(side):
                    yield from named(side)


def named(node: ast.AST) -> Iterator[tuple[int, str]]:
    for n in ast.walk(node):
        if isinstance(n, ast.Name | ast.Attribute):
            yield n.lineno, n.id if isinstance(n, ast.Name) else n.attr


def is_type_of(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "type"


@pytest.mark.parametrize(
    "asks",
    [
        "isinstance(run.model, Decoder)",
        "isinstance(model, (DLRM, models.Decoder))",
        "type(model) is Decoder",
        "Decoder == type(model)",
        "match model:\n case Decoder(vocab=v): pass",
    ],
)
def test_each_way_of_asking_is_seen(asks: str) -> None:
    assert "Decoder" in {name for _, name in asked(ast.parse(asks))}


def test_nobody_asks_for_a_kind_of_model_data_or_objective_outside_its_own_file() -> None:
    kinds = {name: path for path, tree in trees() if is_kind(path) for name in classes(tree)}
    assert {"DLRM", "Decoder", "Pointwise", "Interactions", "Replica"} <= kinds.keys()
    found = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path, tree in trees()
        for line, name in asked(tree)
        if name in kinds and kinds[name] != path
    ]
    assert found == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_and_its_functions_fit_a_reader(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, f"{node.name} at line {node.lineno}"
