"""`scripts/chaos`: breaks clusters of real processes for a while and says whether a promise was broken.

Needs no root. What does is left out, and the output says so; where namespaces can be had it is not. With --check it judges a
history that was kept, and runs nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from pathlib import Path

from scripts.tools.chaos import faults, page
from scripts.tools.chaos.episode import Episode, Plan, Result, choose, some
from scripts.tools.chaos.history import History, by_epoch, load
from scripts.tools.chaos.judge import Verdict, judge
from tests.support import namespaces

REPORTS = Path("build/chaos")
BRIEF_S = 1.0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    add = found.add_argument
    add("--minutes", type=float, default=10.0, help="length of the run (default: 10)")
    add("--faults", default="all", metavar="NAMES", help="names with commas between them, or all (default); --list")
    add("--list", action="store_true", help="say which faults there are, and end")
    add("--seed", type=int, default=None, help="of the schedule of faults; random, and printed, when left out")
    add("--nodes", type=int, default=3, help="nodes of the cluster (default: 3)")
    add("--longest", type=float, default=6.0, metavar="SECONDS", help="how long a fault lasts at most (default: 6)")
    add("--rate", type=float, default=40.0, help="pushes a second, about (default: 40)")
    add("--checkpoint", type=float, default=60.0, metavar="SECONDS", help="between comparisons (default: 60)")
    add("--epoch", type=float, default=12.0, metavar="MINUTES", help="then another cluster begins (default: 12)")
    add("--report", type=Path, default=None, metavar="FOLDER", help="where history and page go (build/chaos/SEED)")
    add("--brief", action="store_true", help="each fault once, and briefly: what CI runs")
    add(
        "--no-namespaces",
        action="store_true",
        help="do not use them, though they can be had: the full disk is left out",
    )
    add("--check", type=Path, default=None, metavar="FILE", help="judge a history that was kept, and end")
    return found


async def run(options: argparse.Namespace, names: list[str], folder: Path) -> Result:
    """One cluster after another until the time is over."""
    rng = random.Random(options.seed)
    history = History(folder / "history.jsonl")
    whole = Result()
    ends = time.monotonic() + options.minutes * 60
    epoch = 0
    try:
        while epoch == 0 or ends - time.monotonic() > 60:
            # Not a last one of a few seconds.
            left = ends - time.monotonic()
            seconds = left if left < options.epoch * 90 else options.epoch * 60
            plan = Plan(
                *(names, seconds, options.nodes, options.longest, options.rate, options.checkpoint),
                disk=faults.FULL in names,
                brief=options.brief,
            )
            print(f"cluster {epoch + 1}, for {max(seconds, 0) / 60:.1f} minutes", flush=True)
            add(whole, await Episode(plan, rng, history, epoch).run())
            # Written after each, so that a run that is ended early has one, too.
            write(folder, whole, history, options.seed)
            epoch += 1
    finally:
        history.close()
    whole.lines = summary(whole, history) + whole.lines
    write(folder, whole, history, options.seed)
    return whole


def add(whole: Result, part: Result) -> None:
    whole.verdict.add(part.verdict)
    whole.faults += part.faults
    whole.spans += part.spans
    whole.samples += part.samples
    whole.checkpoints += part.checkpoints
    whole.troubles += part.troubles
    whole.lines += part.lines


def write(folder: Path, result: Result, history: History, seed: int) -> None:
    (folder / "report.html").write_text(page.render(result, history, seed), "utf-8")


def summary(result: Result, history: History) -> list[str]:
    """What the run was, in a few lines."""
    verdict = result.verdict
    equal = sum(each.equal for each in result.checkpoints)
    return [
        f"faults: {some(result.faults)}",
        f"requests: {len(history.requests):,}: {some(history.outcomes)}",
        f"errors: {some(history.errors)}",
        f"judged: {verdict.jobs:,} jobs with {verdict.ops:,} operations, {verdict.unknown:,} of unknown outcome, in "
        f"{verdict.steps:,} steps; {len(verdict.undecided)} undecided",
        f"events: {verdict.events_compared:,} compared between readers, {verdict.events_expected:,} expected and looked for, "
        f"{verdict.gaps_told} gaps that readers were told of",
        f"checkpoints: contents equal at {equal} of {len(result.checkpoints)}",
        f"longest time without an acknowledged write: {history.longest_pause:.2f} s",
    ]


def check(file: Path) -> int:
    """Judge a history that was kept; streams of events are not in it."""
    whole = Verdict()
    for part in by_epoch(load(file)):
        whole.add(judge(part))
    print(f"{whole.jobs:,} jobs, {whole.ops:,} operations, {len(whole.undecided)} undecided")
    for violation in whole.violations[:50]:
        print(f"VIOLATED: {violation.text}")
    return 0 if whole.passed else 1


def main() -> int:
    options = parser().parse_args()
    if options.list:
        for name, about in faults.ABOUT.items():
            print(f"{name:18} {about}")
        return 0
    if options.check is not None:
        return check(options.check)
    try:
        choose(options.faults, True)
    except ValueError as error:
        print(f"scripts/chaos: {error}", file=sys.stderr)
        return 2
    if options.brief:
        options.minutes, options.longest = 0.0, min(options.longest, BRIEF_S)
    if options.seed is None:
        options.seed = random.randrange(1 << 32)
        sys.argv += ["--seed", str(options.seed)]
    can_fill = namespaces.inside()
    if not can_fill and faults.FULL in choose(options.faults, True):
        why = "not wanted" if options.no_namespaces else namespaces.missing()
        if why is None:
            namespaces.enter("scripts.tools.chaos", sys.argv[1:])
        for name, needs in faults.ROOT_ONLY.items():
            print(f"left out: {name}, which needs {needs} ({why})", flush=True)
    names = [name for name in choose(options.faults, can_fill) if can_fill or name not in faults.ROOT_ONLY]
    if can_fill:
        # Everything is on loopback, which is down in a namespace of its own.
        namespaces.ip("link", "set", "lo", "up")
    folder = options.report or REPORTS / str(options.seed)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"seed {options.seed}; faults: {', '.join(names)}; history and page in {folder}", flush=True)
    result = asyncio.run(run(options, names, folder))
    for line in result.lines:
        print(line)
    verdict = result.verdict
    for text in ([each.text for each in verdict.violations] + result.troubles)[:50]:
        print(f"VIOLATED: {text.splitlines()[0]}")
    for key in verdict.undecided:
        print(f"UNDECIDED: {key}: the search gave up")
    count = len(verdict.violations) + len(result.troubles)
    said = "passed" if result.passed else f"{count} violations, {len(verdict.undecided)} undecided"
    print(f"chaos: seed {options.seed}: {said}; see {folder / 'report.html'}")
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())
