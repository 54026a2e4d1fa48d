"""The list of mutants fits the tree as it is, and those that are quick are noticed. All of them: `scripts/mutants`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.tools import mutants as tool
from scripts.tools.mutants import (
    NOTICED,
    SURVIVED,
    UNUSABLE,
    Kept,
    Misfit,
    Mutant,
    copied,
    mutants,
    mutated,
    part,
    tried,
)

ROOT = Path(__file__).parents[2]
FILE, WAS = "cluster/terms.py", "STEP = 1 << 10\n"
QUICK = [each for each in mutants() if each.quick]


def test_every_mutant_applies_to_the_tree_and_names_what_must_notice_it() -> None:
    all_ = mutants()
    assert len(all_) >= 150
    for each in all_:
        mutated(each)  # raises Misfit


def test_every_part_that_can_lose_a_promise_has_mutants() -> None:
    changed = {each.file for each in mutants()}
    for each in ("disk", "log", "raft", "reads", "submit", "replica", "snapshots", "snapshotting", "probation", "held"):
        assert f"cluster/{each}.py" in changed, each
    assert {"node/machine/state/state.py", "node/machine/machine.py", "api/scopes.py", "api/auth.py"} <= changed


@pytest.mark.parametrize(
    ("mutant", "why"),
    [
        (Mutant("a", FILE, "no such text", "x", tests=["tests/mutants"]), "0 times in cluster/terms.py, not once"),
        (Mutant("a", FILE, "STEP", "x", tests=["tests/mutants"]), "times in cluster/terms.py, not once"),
        (Mutant("a", "cluster/none.py", WAS, "x", tests=["tests/mutants"]), "there is no cluster/none.py"),
        (Mutant("a", FILE, WAS, "STEP = (\n", tests=["tests/mutants"]), "a: "),
        (Mutant("a", FILE, WAS, WAS, tests=["tests/mutants"]), "changes nothing"),
        (Mutant("a", FILE, WAS, "STEP = 1\n"), "tests, or a simulation, must notice it"),
        (Mutant("a", FILE, WAS, "STEP = 1\n", tests=["tests/none.py"]), "there is no tests/none.py"),
        (Mutant("a", FILE, WAS, "STEP = 1\n", tests=["tests/test_tidy.py::test_none"]), "there is no tests/test_tidy"),
    ],
)
def test_a_mutant_that_fits_no_more_is_an_error(mutant: Mutant, why: str) -> None:
    with pytest.raises(Misfit, match=why):
        mutated(mutant)


def test_a_name_that_comes_twice_or_a_list_that_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "LISTS", tmp_path)
    entry = f"[[mutant]]\nname = 'a'\nfile = '{FILE}'\nwas = 'x'\nbecomes = 'y'\n"
    (tmp_path / "a.toml").write_text(entry * 2)
    with pytest.raises(Misfit, match="named twice: a"):
        mutants()
    (tmp_path / "a.toml").write_text(entry + "speed = 3\n")
    with pytest.raises(Misfit, match=r"a\.toml: Object contains unknown field `speed`"):
        mutants()


def test_only_a_failing_test_of_the_copy_notices_and_the_copy_is_sound_afterwards() -> None:
    """One that passes all the same survives, one whose tests are not to be had is unusable; the checkout is as it was."""
    before = (ROOT / FILE).read_text()
    check = "from quorumq.cluster.terms import STEP\n\n\ndef test_it():\n    assert STEP == 1 << 10\n"
    with copied() as copy:
        (copy / "tests" / "check.py").write_text(check)
        outcomes = []
        for becomes, test in (("STEP = 1\n", "check.py"), ("STEP = 1 << 10\n", "check.py"), ("STEP = 1\n", "none.py")):
            mutant = Mutant("a", FILE, WAS, becomes, tests=[f"tests/{test}"])
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tool, "mutated", lambda each: before.replace(each.was, each.becomes))
                outcomes.append(tried(copy, mutant)[0])
            assert (copy / FILE).read_text() == (ROOT / FILE).read_text() == before
    assert outcomes == [NOTICED, SURVIVED, UNUSABLE]


@pytest.mark.parametrize(
    ("sound_s", "outcome"), [(1.0, NOTICED), (tool.LIMIT_S / 2, UNUSABLE)], ids=["hangs", "may be slow"]
)
def test_what_comes_to_no_end_is_noticed_only_if_it_is_not_just_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sound_s: float, outcome: str
) -> None:
    def endless(copy: Path, mutant: Mutant) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired("pytest", tool.LIMIT_S)

    mutant, kept = Mutant("a", FILE, WAS, "STEP = 1\n", tests=["tests/mutants"]), Kept(tmp_path / "kept")
    monkeypatch.setattr(tool, "run", endless)
    with copied() as copy:
        assert tried(copy, mutant, sound_s)[0] == outcome
        # Nor is anything tried whose tests come to no end by themselves.
        found = part(copy, mutant, kept)
        assert (found["outcome"], found["said"]) == (UNUSABLE, f"takes more than {tool.LIMIT_S} s without any bug")


@pytest.mark.timeout(600)
def test_the_quick_ones_are_noticed(tmp_path: Path) -> None:
    """Each by the one file of tests that it names."""
    assert len(QUICK) >= 12
    run = subprocess.run(
        [sys.executable, "-m", "scripts.tools.mutants", "--quick", "--keep", str(tmp_path / "kept"), "--verbose"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{len(QUICK)} of {len(QUICK)} noticed" in run.stdout
