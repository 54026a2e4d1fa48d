"""What the tree promises of itself: imports point one way, and the state machine knows no clock and no chance."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.support.source import parsed

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
MACHINE = sorted((ROOT / "node" / "machine").rglob("*.py"))
# Those of which no module imports one that imports it, not even for type checkers.
NO_CIRCLES = ("api", "cli", "cluster", "node")
# A module that is longer is more than one reads at once.
LINES_MAX = 700
# A function that is longer does not stand on a screen.
FUNCTION_LINES_MAX = 100
NOT_DETERMINISTIC = {"asyncio", "time", "random", "os", "secrets", "uuid", "datetime", "threading", "socket", "locale"}


def top(module: str) -> str:
    """Return what of a module's name says where it belongs: our package below `quorumq`, or the top-level package."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] if first == "quorumq" and rest else first


def imports(path: Path) -> set[str]:
    """Return the packages a module imports (ours without `quorumq.`), outside of blocks for type checkers."""
    tree = parsed(path)
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
            found |= {top(name.name) for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(top(node.module))
    return found


def names(package: str) -> dict[str, Path]:
    """Return our modules by their names below `quorumq`."""
    found = {}
    for path in modules(package):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def arrows(package: str) -> dict[str, set[str]]:
    """Return which modules of a package import which others of it, for type checkers alone or inside of functions, too.

    Whoever imports a module imports the packages around it as well, as far as it is not in them itself.
    """
    known = names(package)
    found: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        folder = (name if path.name == "__init__.py" else name.rpartition(".")[0]).split(".")
        for node in ast.walk(parsed(path)):
            asked: list[str] = []
            if isinstance(node, ast.Import):
                asked = [one.name for one in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = folder[: len(folder) - node.level + 1] if node.level else []
                whole = ".".join([*base, *([node.module] if node.module else [])]).removeprefix("quorumq.")
                asked = [f"{whole}.{one.name}" for one in node.names]
            for one in asked:
                parts = one.removeprefix("quorumq.").split(".")
                around = {".".join(parts[:end]) for end in range(1, len(parts) + 1)} & known.keys()
                found[name] |= {other for other in around if not name.startswith(f"{other}.")} - {name}
                found[name] |= {max(around, key=len)} - {name} if around else set()
    return found


def circles(reach: dict[str, set[str]]) -> list[str]:
    """Return the modules that import one another: what is left without those that import none of the rest, or that none of it imports."""
    left = dict(reach)
    while left:
        imported = set().union(*left.values())
        kept = {
            name: others & left.keys() for name, others in left.items() if others & left.keys() and name in imported
        }
        if len(kept) == len(left):
            break
        left = kept
    return sorted(left)


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


@pytest.mark.parametrize("package", NO_CIRCLES)
def test_modules_import_in_no_circle(package: str) -> None:
    assert circles(arrows(package)) == []


def test_a_circle_is_found() -> None:
    reach = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"e"}, "e": set()}
    assert circles(reach) == ["b", "c"]
    assert "api.path" in arrows("api")["api.server"] and "api.request" in arrows("api")["api.scopes"]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_is_longer_than_one_reads(package: str) -> None:
    long = {
        name_of(path): lines
        for path in modules(package)
        if (lines := len(path.read_text("utf-8").splitlines())) > LINES_MAX
    }
    assert long == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_function_is_longer_than_a_screen(package: str) -> None:
    long = {
        f"{name_of(path)} {node.name}": lines
        for path in modules(package)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    }
    assert long == {}


def test_only_cluster_knows_the_consensus_library() -> None:
    found = {name_of(path) for package in PACKAGES for path in modules(package) if "pysyncobj" in imports(path)}
    assert {name.partition("/")[0] for name in found} <= {"cluster"}


def test_only_api_speaks_http() -> None:
    http = {"aiohttp", "yarl", "urllib", "http", "ssl"}
    found = {name_of(path): found for path in modules("node") if (found := imports(path) & http)}
    found |= {name_of(path): found for path in modules("cluster") if (found := imports(path) & (http - {"ssl"}))}
    assert found == {}


def test_the_cluster_calls_others_by_one_client() -> None:
    client = {"aiohttp", "urllib3", "httpx", "requests", "http"}
    assert {
        name_of(path): found
        for path in sorted((ROOT / "api" / "outgoing").rglob("*.py"))
        if (found := imports(path) & client)
    } == {}
    used = [
        name_of(path) for package in PACKAGES for path in modules(package) if "ClientSession" in path.read_text("utf-8")
    ]
    assert used == []


@pytest.mark.parametrize("path", MACHINE, ids=name_of)
def test_the_machine_knows_no_clock_and_no_chance(path: Path) -> None:
    assert imports(path) & NOT_DETERMINISTIC == set()
    tree = parsed(path)
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
        tree = parsed(path)
        assert ast.get_docstring(tree) or not tree.body, f"{name_of(path)} says nothing of itself"
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{name_of(path)}:{node.lineno}"
        assert "pickle" not in imports(path), name_of(path)


def bare_imports(path: Path) -> list[str]:
    """Return what a module imports of our packages by another name than `quorumq.…`, wherever in it."""
    found = []
    for node in ast.walk(parsed(path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        found += [name for name in names if name.partition(".")[0] in PACKAGES]
    return found


# It loads the whole tree in a process of its own, which a machine that does much else takes minutes for.
@pytest.mark.timeout(600)
def test_no_module_goes_by_two_names() -> None:
    ours = [path for folder in (*PACKAGES, "tests", "scripts", "examples", "quorumq") for path in modules(folder)]
    assert {name_of(path): found for path in ours if (found := bare_imports(path))} == {}
    # Whatever an import hides behind a string is seen once the whole tree is loaded.
    everything = [
        ".".join(("quorumq", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for package in PACKAGES
        for path in modules(package)
    ]
    program = f"import importlib, sys; [importlib.import_module(name) for name in {everything!r}]; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "quorumq.cluster.engine" in loaded.split()
    assert not {name for name in loaded.split() if name.partition(".")[0] in PACKAGES}


# What two dialects, or a dialect and the machine, both have a class for, because it is the same thing: each writes it in its own words.
SAME_THING = {
    "Cleaned": "jobs that a clean removed",
    "Counts": "jobs of a queue by state",
    "Group": "the jobs of a queue with one group id",
    "LogPage": "some lines of a job",
    "Pushed": "the jobs that were pushed",
    "RateShown": "the rate limit of a queue or of a group",
    "Retention": "how many finished jobs a queue keeps",
    "WebhookShown": "a webhook, with what waits for it",
}


def dialect_of(path: str) -> str:
    """Return the dialect that a module belongs to; empty for what belongs to all of them."""
    parts = path.split("/")
    return parts[2].removesuffix(".py") if parts[:2] == ["api", "dialects"] else ""


def named_twice(found: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the classes, of (module, name), that stand in several modules, with these.

    Two dialects may call something by one name in the modules of one subject, as may each that shows one of SAME_THING.
    """
    by_name: dict[str, list[str]] = {}
    for path, name in found:
        by_name.setdefault(name, []).append(path)
    twice = {}
    for name, paths in by_name.items():
        dialects = [dialect_of(path) for path in paths]
        apart = len(set(dialects)) == len(paths)
        one_subject = all(dialects) and len({path.rpartition("/")[2] for path in paths}) == 1
        if len(paths) > 1 and not (apart and (one_subject or name in SAME_THING)):
            twice[name] = paths
    return twice


def classes() -> list[tuple[str, str]]:
    return [
        (name_of(path), node.name)
        for package in PACKAGES
        for path in modules(package)
        for node in parsed(path).body
        if isinstance(node, ast.ClassDef)
    ]


def test_a_name_of_a_class_stands_for_one_thing() -> None:
    assert named_twice(classes()) == {}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("cli/leaving.py", "Client"),
        ("api/outgoing/client.py", "Client"),
        ("api/dialects/bunqueue/sse.py", "Client"),
        # Of one dialect; of two, and not of one subject; of one subject, beside what belongs to all dialects.
        ("api/dialects/bunqueue/queues.py", "CleanBody"),
        ("api/dialects/admin/members.py", "WorkerBody"),
        ("node/workers.py", "WorkerBody"),
        # Where it stands already, and beside both.
        ("api/dialects/bunqueue/jobs.py", "Counts"),
        ("node/machine/events.py", "Counts"),
    ],
)
def test_a_second_class_of_a_name_is_found(path: str, name: str) -> None:
    before = [where for where, one in classes() if one == name]
    assert before and named_twice([*classes(), (path, name)]) == {name: [*before, path]}


def test_what_may_have_one_name_has_one() -> None:
    """An entry that nothing needs any more would let the next one of its name in unseen."""
    found = classes()
    assert {name: sum(one == name for _, one in found) for name in SAME_THING} == dict.fromkeys(SAME_THING, 2)
