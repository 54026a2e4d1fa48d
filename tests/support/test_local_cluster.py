"""Test processes that run side by side are given ports of their own."""

import itertools
import random

import pytest

from tests.support import local_cluster
from tests.support.local_cluster import free_ports, port_range


def seeded_ports(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setattr(local_cluster, "_given", set())
    random.seed(7)
    return free_ports(20)


def test_what_seeds_the_module_random_does_not_choose_the_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulation does, so two processes that had played the same worlds started clusters on the same ports."""
    assert seeded_ports(monkeypatch) != seeded_ports(monkeypatch)


def test_processes_side_by_side_share_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "3")
    ranges = []
    for worker in range(3):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", f"gw{worker}")
        first, last = port_range()
        assert all(first <= port <= last for port in free_ports(20))
        ranges.append((first, last))
    assert all(last < first for (_, last), (first, _) in itertools.pairwise(ranges))
    assert ranges[0][0] >= 12_000 and ranges[-1][1] < 32_768


def test_no_port_is_given_twice() -> None:
    """A killed node of one cluster wants its own back, which nobody holds meanwhile."""
    given = [port for _ in range(40) for port in free_ports(5)]
    assert len(set(given)) == len(given)
