"""Seeds in CI: a fixed set, a few fresh ones, and the proof that each protection's absence is noticed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.breaks import BREAKS

ROOT = Path(__file__).parents[2]


def simulate(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *args],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("profile", "nodes", "seeds"),
    [
        ("calm", "3", "0:6"),
        ("rough", "3", "0:60"),
        ("rough", "5", "0:12"),
        ("hell", "3", "0:60"),
        ("hell", "5", "0:12"),
    ],
)
def test_fixed_seeds(profile: str, nodes: str, seeds: str) -> None:
    run = simulate("--profile", profile, "--nodes", nodes, "--seeds", seeds)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " 0 failed, " in run.stdout


@pytest.mark.timeout(600)
def test_fresh_seeds(record_property: pytest.RecordProperty) -> None:
    first = random.SystemRandom().randrange(10_000, 10_000_000)
    run = simulate("--profile", "rough", "--seeds", f"{first}:{first + 25}")
    record_property("first seed", first)
    print(f"fresh seeds from {first}")
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(BREAKS))
def test_a_missing_protection_is_noticed(name: str) -> None:
    profile = "disks" if name in ("leader-durability", "durable-ack", "log-checksum") else "hell"
    run = simulate("--profile", profile, "--seeds", "0:400", "--break", name, "--first")
    assert run.returncode == 1, run.stdout + run.stderr
    assert f"--break {name} --trace" in run.stdout


def test_a_seed_is_the_same_run_every_time() -> None:
    first, second = (simulate("--seeds", "3:4", "--trace").stdout.splitlines()[:-2] for _ in range(2))
    assert first == second
    assert len(first) > 10
