"""scripts/simulate --power: how many seeds of the default mix it takes until each missing protection is noticed.

Ten disjoint ranges of seeds that no test uses, for each break and for each mutant that the simulation is to notice; the median counts.
All ranges are gone through abreast, and no further once the median is known. What was found is kept in build/power.jsonl until a
program that it depends on changes, so that a run that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from scripts.tools.mutants import Mutant, copied, mutants, mutated
from tests.simulation.breaks import BREAKS

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "power.jsonl"
FIRST, APART, RANGES, CAP = 20_000_000, 1000, 10, 200
"""Where the ranges begin, how far they are apart, how many there are, and how many seeds of each are tried at most."""
STEPS = (5, 15, 30, 60, 120, CAP)
"""So far all ranges are gone through before one goes further."""
WANTED = 30


class Tried(NamedTuple):
    """Seeds of one range that were gone through, up to the one that failed, if one did; and the processor time that they took."""

    failed: bool
    seeds: int
    seconds: float


def measure(where: Path, begin: int, part: range, options: Sequence[str]) -> Tried:
    """Go through those in `part` of the range that begins at `begin`."""
    seeds = f"{begin + part.start}:{begin + part.stop}"
    command = [sys.executable, "-m", "tests.simulation", "--first", "--seeds", seeds, *options]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(where), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"^(\d+) seeds, (\d+) failed, .*, ([\d.]+) s a seed$", done.stdout, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout[-500:]}{done.stderr[-2000:]}")
    return Tried(found[2] != "0", int(found[1]), float(found[3]) * int(found[1]))


def _fingerprint() -> str:
    hashed = hashlib.sha256()
    for folder in ("cluster", "node", "tests/simulation"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.name not in ("power.py", "test_simulation.py", "test_scenarios.py"):
                hashed.update(path.read_bytes())
    return hashed.hexdigest()[:16]


class Kept:
    """What is known of this tree, by bug, range and part of it, and the file that it is kept in."""

    def __init__(self) -> None:
        self._of = _fingerprint()
        KEPT.parent.mkdir(exist_ok=True)
        rows = [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []
        self.known = {tuple(row["key"]): Tried(*row["tried"]) for row in rows if row["of"] == self._of}

    def add(self, key: tuple[str, int, int], tried: Tried) -> None:
        """Keep one more."""
        self.known[key] = tried
        with KEPT.open("a") as file:
            file.write(json.dumps({"of": self._of, "key": key, "tried": tried}) + "\n")


def until_noticed(name: str, bug: Mutant | None, jobs: int, kept: Kept) -> tuple[list[int], int, float]:
    """How many seeds each range took that noticed it, how far the others were gone through, and the seconds that a seed took.

    No further than until more than half of the ranges have noticed it: then the median is known.
    """
    taken: dict[int, int] = {}
    tried: list[Tried] = []
    with copied() as copy, ThreadPoolExecutor(jobs) as pool:
        where, options = (copy, ()) if bug is not None else (ROOT, ("--break", name))
        if bug is not None:
            (copy / bug.file).write_text(mutated(bug))
        for begin, end in pairwise((0, *STEPS)):

            def one(number: int) -> None:
                if (name, number, end) not in kept.known:  # noqa: B023 all are awaited before the next part
                    part = measure(where, FIRST + number * APART, range(begin, end), options)  # noqa: B023
                    kept.add((name, number, end), part)  # noqa: B023

            left = [number for number in range(RANGES) if number not in taken]
            list(pool.map(one, left))
            parts = {number: kept.known[name, number, end] for number in left}
            taken |= {number: begin + part.seeds for number, part in parts.items() if part.failed}
            tried += parts.values()
            if 2 * len(taken) > RANGES:
                break
    return sorted(taken.values()), end, sum(part.seconds for part in tried) / sum(part.seeds for part in tried)


def main(names: Sequence[str], jobs: int) -> int:
    """Measure the breaks and mutants of these names, all when none is given, and print the table; 1 when one takes too long."""
    bugs: dict[str, Mutant | None] = dict.fromkeys(sorted(BREAKS))
    bugs |= {f"mutant {each.name}": each for each in mutants() if each.simulate}
    chosen = {name: bug for name, bug in bugs.items() if not names or name in names or name.split()[-1] in names}
    kept = Kept()
    print(f"{'':44} median   least    most   s a seed")
    too_long = []
    for name, bug in chosen.items():
        taken, end, seconds = until_noticed(name, bug, jobs, kept)
        counts = taken + [end + 1] * (RANGES - len(taken))
        median = statistics.median(counts)
        shown = [f"{each:g}" if each <= end else f">{end}" for each in (median, min(counts), max(counts))]
        print(f"{name:44} {shown[0]:>6} {shown[1]:>7} {shown[2]:>7} {seconds:10.2f}", flush=True)
        if median > WANTED:
            too_long.append(name)
    print(f"{len(chosen) - len(too_long)} of {len(chosen)} take {WANTED} seeds or fewer at the median")
    return 1 if too_long else 0
