"""Options and profiles for the whole suite."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support import declared

# How long an example takes says as much about the machine, which may pause, as about the test.
PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", **PATIENT)
settings.register_profile("long", max_examples=2000, **PATIENT)
settings.load_profile("quick")

LONGEST = ("simulation", "cluster", "kubernetes", "packaging", "chaos")
IN_REAL_TIME = frozenset(
    [
        "api",
        "chaos",
        "cli",
        "clients",
        "cluster",
        "consensus",
        "deploy",
        "documentation",
        "kubernetes",
        "outgoing",
        "packaging",
        "versions",
    ]
)
"""Folders whose tests start nodes or servers, which miss a deadline when the machine stands still."""
APART = ("tests/simulation/test_simulation.py",)
"""Files whose tests share nothing."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write the answers of the scenarios anew")
    parser.addoption("--again", action="store_true", help="run a test of nodes that failed again, twice at most")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The folders whose tests take longest come first, so that of two processes none has a long one left at the end."""
    if config.getoption("again"):
        for item in items:
            if _folder(item) in IN_REAL_TIME:
                item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=10))
    items.sort(key=lambda item: LONGEST.index(folder) if (folder := _folder(item)) in LONGEST else len(LONGEST))


def _folder(item: pytest.Item) -> str:
    return item.nodeid.removeprefix("tests/").partition("/")[0]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tell why a test was run again: that it passed then does not make its failure nothing."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.write_sep("_", f"failed at first, and was run again: {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests share what they start, and those in Kubernetes one cluster; each of the rest goes to the next process that is free."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if file in APART:
                return nodeid
            return "tests/kubernetes" if file.startswith("tests/kubernetes/") else file

    return Together(config, log)


declared.hold_all()


@pytest.fixture(autouse=True)
def _operations_do_what_they_declare() -> Iterator[None]:
    declared.found()
    yield
    assert declared.found() == []
