"""The short form of scripts/attack: what is not about time has to hold on any machine. The script itself measures."""

from __future__ import annotations

import pytest

from scripts.tools import attack
from tests.support.local_cluster import PATIENCE

MIB = 1 << 20


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine that pauses for a second is no attack's doing.
    monkeypatch.setattr(attack, "RAISED", attack.RAISED | PATIENCE)


async def test_others_are_served_by_the_same_leader(patient: None, capsys: pytest.CaptureFixture[str]) -> None:
    found = await attack.attack(attack.USUAL, seconds=4, share=0.02, settle_s=20)
    assert found["before"] == found["after"]
    for seen in found["seen"].values():
        assert set(seen.statuses) == {"200"}
        assert len(seen.took) >= 2
    under = found["attack"]
    # They were all let in, and nobody else was let do anything.
    assert under.answers["sockets"]["101"] == under.opened["sockets"] == 40
    assert under.opened["polls"] == 100
    assert under.opened["heads"] == 60
    assert set(under.answers["bombs"]) == {"401"}
    memory, peak, left = found["memory"]
    # A single bomb would be a gigabyte.
    assert peak < memory + 256 * MIB
    assert left < memory * 1.1 + attack.MEMORY_SLACK
    assert "other clients of" in capsys.readouterr().out


async def test_bodies_that_stop_and_lists_without_end_are_answered(
    patient: None, capsys: pytest.CaptureFixture[str]
) -> None:
    found = await attack.attack(("open_bombs", "depends", "halves"), seconds=4, share=0.02, settle_s=20)
    assert found["before"] == found["after"]
    for seen in found["seen"].values():
        assert set(seen.statuses) == {"200"}
    under = found["attack"]
    assert set(under.answers["open-bombs"]) <= {"400", "503"}
    assert set(under.answers["depends"]) <= {"400", "503"}
    capsys.readouterr()
