"""What the tree promises of itself: imports point one way, and the state machine knows no clock and no chance."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("cluster", "node", "api", "cli")
# What each package may import of the others.
BELOW = {
    "cluster": set(),
    "node": {"cluster"},
    "api": {"node", "cluster"},
    "cli": {"api", "node", "cluster"},
}
# The replicated state machine: the same input gives the same state, on every node, for ever.
MACHINE = (
    *sorted((ROOT / "node" / "state").glob("*.py")),
    *sorted((ROOT / "node" / "operations").glob("*.py")),
    *(ROOT / "node" / f"{name}.py" for name in ("machine", "events", "refusals", "image", "operation", "notices")),
)
NOT_DETERMINISTIC = {"asyncio", "time", "random", "os", "secrets", "uuid", "datetime", "threading", "socket", "locale"}


def imports(path: Path) -> set[str]:
    """Return the top-level packages a module imports, outside of blocks for type checkers."""
    tree = ast.parse(path.read_text("utf-8"))
    checking = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for child in block.body
        for node in ast.walk(child)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in checking:
            continue
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    wrong = {
        name_of(path): sorted(bad)
        for path in modules(package)
        if (bad := imports(path) & (set(PACKAGES) - BELOW[package] - {package}))
    }
    assert wrong == {}


def test_only_cluster_knows_the_consensus_library() -> None:
    found = {name_of(path) for package in PACKAGES for path in modules(package) if "pysyncobj" in imports(path)}
    assert {name.partition("/")[0] for name in found} <= {"cluster"}


def test_only_api_serves_http() -> None:
    found = [
        name_of(path) for package in ("cluster", "node") for path in modules(package) if "aiohttp" in imports(path)
    ]
    # A client, for webhooks; the server is the API's alone.
    assert found == ["node/deliveries.py"]
    assert "aiohttp.web" not in (ROOT / "node" / "deliveries.py").read_text("utf-8")


@pytest.mark.parametrize("path", MACHINE, ids=name_of)
def test_the_machine_knows_no_clock_and_no_chance(path: Path) -> None:
    assert imports(path) & NOT_DETERMINISTIC == set()
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("hash", "id"), f"{name_of(path)}:{node.lineno} depends on addresses or seeds"
        # A set has no order of its own; a loop over one would give each replica another.
        if isinstance(node, ast.For | ast.comprehension):
            assert not isinstance(node.iter, ast.Set | ast.SetComp), f"{name_of(path)} iterates over a set"
            assert not (
                isinstance(node.iter, ast.Call) and isinstance(node.iter.func, ast.Name) and node.iter.func.id == "set"
            ), f"{name_of(path)} iterates over a set"


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_open_with_a_docstring_and_swallow_nothing(package: str) -> None:
    for path in modules(package):
        tree = ast.parse(path.read_text("utf-8"))
        assert ast.get_docstring(tree) or not tree.body, f"{name_of(path)} says nothing of itself"
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{name_of(path)}:{node.lineno}"
        assert "pickle" not in imports(path), name_of(path)
