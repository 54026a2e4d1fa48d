"""How much goes wrong: which faults, how often, and how the network and the disks behave between them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace


def calm_delay(rng: random.Random) -> float:
    return rng.uniform(0.0002, 0.002)


def rough_delay(rng: random.Random) -> float:
    return rng.choice((0.0005, 0.001, 0.002, 0.005, 0.02, 0.1)) * rng.uniform(0.5, 1.5)


@dataclass(frozen=True)
class Profile:
    """seconds: virtual time under faults.  rate: client operations a second.  weights: how often each fault comes."""

    name: str
    seconds: float
    clients: int
    rate: float
    faults_a_second: float
    delay: Callable[[random.Random], float]
    weights: dict[str, int]
    snapshot_entries: int = 60
    tail_entries: int = 8
    segment_bytes: int = 4000
    append_bytes: int = 1000
    garbage: bool = True
    disk_s: tuple[float, float] = (0.0002, 0.002)
    quorum_loss_ms: int = 900
    unwritten_bytes_max: int = 64 << 20
    steady: bool = False
    """Whether no process ends, and no machine sleeps, in it."""
    sessions: int = 0
    """Clients of the backend protocol, as many of which read events."""
    draw: Callable[[random.Random], Profile] | None = None
    """Makes the profile of one seed; without it all seeds have this one."""

    def drawn(self, rng: random.Random) -> Profile:
        """The profile of one seed."""
        return self if self.draw is None else self.draw(rng)

    def pick(self, rng: random.Random) -> str:
        return rng.choices(list(self.weights), list(self.weights.values()))[0]


CALM = Profile(
    "calm", 20, 6, 20, 0.2, calm_delay, {"crash": 4, "reset": 4, "transfer": 2, "redial": 2}, snapshot_entries=100
)
ROUGH = Profile(
    "rough",
    20,
    6,
    20,
    1.0,
    rough_delay,
    {
        "crash": 6,
        "crash_all": 1,
        "reset": 8,
        "redial": 3,
        "cut": 5,
        "isolate": 3,
        "pause": 4,
        "clock": 4,
        "suspend": 1,
        "slow_disk": 3,
        "hung_disk": 2,
        "full_disk": 2,
        "failing_sync": 2,
        "transfer": 2,
        "wipe": 2,
        "forget": 1,
        "flip": 1,
        "lose_log": 1,
        "members": 3,
    },
)
HELL = replace(
    ROUGH, name="hell", faults_a_second=3.0, snapshot_entries=25, tail_entries=2, segment_bytes=1500, append_bytes=250
)

DISKS = replace(
    HELL,
    name="disks",
    weights={
        "crash": 6,
        "crash_all": 1,
        "cut": 3,
        "slow_disk": 8,
        "hung_disk": 2,
        "full_disk": 2,
        "failing_sync": 2,
        "reset": 2,
        "pause": 1,
    },
    disk_s=(0.001, 0.05),
)

DAMAGE = replace(
    CALM,
    name="damage",
    seconds=60,
    faults_a_second=0.1,
    weights={"damage": 3, "reset": 2, "transfer": 1, "redial": 1},
)

# Nobody starts anew, so whatever all clocks say, time goes on from where it was.
CLOCKS = replace(
    ROUGH,
    name="clocks",
    weights={
        "clock": 6,
        "all_clocks": 4,
        "transfer": 3,
        "reset": 3,
        "cut": 3,
        "isolate": 2,
        "pause": 2,
        "slow_disk": 1,
        "read_at_the_deposed": 1,
    },
    steady=True,
)

# At as many faults as in the others a worker gets no job in most seeds.
SESSIONS = replace(HELL, name="sessions", clients=2, rate=6, faults_a_second=0.8, sessions=3)

HANGS = replace(
    ROUGH,
    name="hangs",
    faults_a_second=0.5,
    weights={"hung_disk": 6, "hang_most": 3, "reset": 6, "isolate": 1, "crash": 1, "transfer": 1},
)

AIMED = {
    "cut_after_append": 3,
    "crash_after_answer": 3,
    "crash_before_sync": 3,
    "read_at_the_deposed": 4,
    "wipe_after_vote": 3,
    "strangers_vote": 2,
    "changes_at_once": 3,
    "hang_the_leader": 2,
    "fill_a_disk": 2,
    "wipe_the_elector": 3,
    "tell_terms_and_no_more": 3,
    "crash_at_the_end_of_probation": 3,
    "write_in_two_terms": 3,
    "leave_two_that_contradict": 2,
    "snapshot_in_an_election": 2,
    "lose_what_is_under_way": 3,
    "lead_with_a_wrong_clock": 3,
    "flip": 3,
    "lose_log": 3,
}
"""tests/simulation/strikes.py, and two ways in which a disk loses what was promised; and how often each comes."""


def _some(rng: random.Random, weights: dict[str, int], share: float) -> dict[str, int]:
    """Of all faults a part, so that those that hide each other come apart; never none."""
    kept = {fault: weight for fault, weight in weights.items() if rng.random() < share}
    return kept or dict(weights)


def mixed(rng: random.Random) -> Profile:
    """One seed of the default mix: which faults come in it, how often, how fast its disks are, and how much it keeps."""
    kind = rng.choices(("aimed", "all", "damage", "clocks", "hangs", "sessions"), (12, 4, 3, 4, 2, 3))[0]
    if kind == "damage":
        return replace(DAMAGE, name="mix", seconds=30, faults_a_second=0.2)
    if kind == "clocks":
        return replace(CLOCKS, name="mix", seconds=15)
    if kind == "hangs":
        return replace(HANGS, name="mix", seconds=15)
    if kind == "sessions":
        return replace(SESSIONS, name="mix", seconds=15)
    snapshots = rng.choice(((25, 0, 1500, 250), (60, 8, 4000, 1000)))
    sizes = dict(zip(("snapshot_entries", "tail_entries", "segment_bytes", "append_bytes"), snapshots, strict=True))
    if kind == "aimed":
        return replace(
            CALM,
            name="mix",
            seconds=15,
            rate=rng.choice((20, 40)),
            faults_a_second=2.0,
            weights={**_some(rng, AIMED, 0.5), "reset": 1, "crash": 1},
            quorum_loss_ms=rng.choice((900, 4000)),
            unwritten_bytes_max=rng.choice((64 << 20, 3000)),
            **sizes,
        )
    return replace(
        ROUGH,
        name="mix",
        seconds=12,
        rate=rng.choice((20, 40)),
        faults_a_second=rng.choice((1.0, 3.0)),
        weights=_some(rng, {**ROUGH.weights, **AIMED}, 0.6),
        disk_s=rng.choice(((0.0002, 0.002), (0.001, 0.05))),
        **sizes,
    )


MIX = replace(ROUGH, name="mix", draw=mixed)
"""What is run when nothing else is asked for: in CI, for every break and for every mutant."""

PROFILES = {profile.name: profile for profile in (MIX, CALM, ROUGH, HELL, DISKS, DAMAGE, CLOCKS, HANGS, SESSIONS)}
