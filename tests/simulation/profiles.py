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
        "clock": 2,
        "slow_disk": 3,
        "full_disk": 2,
        "failing_sync": 2,
        "transfer": 2,
        "wipe": 2,
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
        "full_disk": 2,
        "failing_sync": 2,
        "reset": 2,
        "pause": 1,
    },
    disk_s=(0.001, 0.05),
)

PROFILES = {profile.name: profile for profile in (CALM, ROUGH, HELL, DISKS)}
