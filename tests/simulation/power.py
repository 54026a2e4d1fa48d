"""scripts/simulate --power: how many seeds of the default mix it takes until each missing protection is noticed.

Ten disjoint ranges of seeds that no test uses, for each break and for each mutant that the simulation is to notice; the median counts.
What was found is kept in build/power.jsonl until a program that it depends on changes, so that a run that was stopped goes on.
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
from pathlib import Path

from scripts.tools.mutants import Mutant, copied, mutants, mutated
from tests.simulation.breaks import BREAKS, BY_SCENARIO

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "power.jsonl"
FIRST, APART, RANGES, CAP = 20_000_000, 1000, 10, 200
"""Where the ranges begin, how far they are apart, how many there are, and how many seeds of each are tried at most."""
WANTED = 30


def measure(where: Path, number: int, options: Sequence[str]) -> tuple[int | None, float]:
    """Seeds of one range until one fails, None if none does; and the seconds of processor time that a seed took."""
    begin = FIRST + number * APART
    command = [sys.executable, "-m", "tests.simulation", "--first", "--seeds", f"{begin}:{begin + CAP}", *options]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(where), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"^(\d+) seeds, (\d+) failed, .*, ([\d.]+) s a seed$", done.stdout, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout[-500:]}{done.stderr[-2000:]}")
    return (int(found[1]) if found[2] != "0" else None), float(found[3])


def _fingerprint() -> str:
    hashed = hashlib.sha256()
    for folder in ("cluster", "node", "tests/simulation"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.name not in ("power.py", "test_simulation.py", "test_scenarios.py"):
                hashed.update(path.read_bytes())
    return hashed.hexdigest()[:16]


def main(names: Sequence[str], jobs: int) -> int:
    """Measure the breaks and mutants of these names, all when none is given, and print the table; 1 when one takes too long."""
    bugs: dict[str, Mutant | None] = dict.fromkeys(sorted(BREAKS.keys() - BY_SCENARIO))
    bugs |= {f"mutant {each.name}": each for each in mutants() if each.simulate}
    chosen = {name: bug for name, bug in bugs.items() if not names or name in names or name.split()[-1] in names}
    of = _fingerprint()
    rows = [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []
    known = {(row["name"], row["range"]): row for row in rows if row["of"] == of}
    KEPT.parent.mkdir(exist_ok=True)
    print(f"{'':44} median   least    most   s a seed")
    too_long = []

    for name, bug in chosen.items():
        with copied() as copy, ThreadPoolExecutor(jobs) as pool:
            where = copy if bug is not None else ROOT
            options = () if bug is not None else ("--break", name)
            if bug is not None:
                (copy / bug.file).write_text(mutated(bug))

            def one(number: int) -> None:
                seeds, seconds = measure(where, number, options)  # noqa: B023 all are awaited before the next bug
                row = {"of": of, "name": name, "range": number, "seeds": seeds, "seconds": seconds}  # noqa: B023
                known[name, number] = row  # noqa: B023
                with KEPT.open("a") as file:
                    file.write(json.dumps(row) + "\n")

            list(pool.map(one, [number for number in range(RANGES) if (name, number) not in known]))
        taken = [known[name, number] for number in range(RANGES)]
        counts = [row["seeds"] or CAP + 1 for row in taken]
        seconds = statistics.fmean(row["seconds"] for row in taken)
        median = statistics.median(counts)
        shown = [f"{each:g}" if each <= CAP else f">{CAP}" for each in (median, min(counts), max(counts))]
        print(f"{name:44} {shown[0]:>6} {shown[1]:>7} {shown[2]:>7} {seconds:10.2f}", flush=True)
        if median > WANTED:
            too_long.append(name)
    print(f"{len(chosen) - len(too_long)} of {len(chosen)} take {WANTED} seeds or fewer at the median")
    return 1 if too_long else 0
