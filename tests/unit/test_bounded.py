"""Whatever waits for a process or a thread says for how long, in the library, its tests and its benchmarks."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENDLESS = {
    ("rtrain/cli/recipe.py", "wait"),  # `rtrain serve` serves until it is interrupted
    ("rtrain/parallel/ahead.py", "wait"),  # of a collective, which its process group gives up at its time-out
    ("rtrain/checkpoint/shards.py", "join"),  # of a thread that only computes
}


def unbounded(source: str) -> list[tuple[int, str]]:
    """Lines that wait without a limit, and the call: `subprocess.run`, `x.join()`, `x.wait()`, `x.communicate()`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        limited = any(
            keyword.arg is None or (keyword.arg == "timeout" and ast.unparse(keyword.value) != "None")
            for keyword in node.keywords
        )
        owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
        starts = owner == "subprocess" and node.func.attr in ("run", "check_call", "check_output", "call")
        # With a positional argument it is str.join, or a limit.
        waits = node.func.attr in ("join", "wait", "communicate") and not node.args
        if (starts or waits) and not limited:
            found.append((node.lineno, node.func.attr))
    return found


@pytest.mark.parametrize("room", ["rtrain", "tests", "bench", "recipes"])
def test_no_wait_is_endless(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    found = [
        f"{file.relative_to(ROOT)}:{line}: {call}"
        for file in files
        for line, call in unbounded(file.read_text())
        if (str(file.relative_to(ROOT)), call) not in ENDLESS
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "calls"),
    [
        ("subprocess.run(['x'])", ["run"]),
        ("subprocess.run(['x'], timeout=3)", []),
        ("thread.join()", ["join"]),
        ("thread.join(timeout=None)", ["join"]),
        ("thread.join(5)", []),
        ("', '.join(words)", []),
        ("process.communicate(input='x')", ["communicate"]),
        ("subprocess.run(['x'], **options)", []),
    ],
)
def test_what_counts_as_endless(line: str, calls: list[str]) -> None:
    assert [call for _, call in unbounded(line)] == calls
