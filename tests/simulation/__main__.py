"""scripts/simulate: run seeds, print a line for each that fails, and a command that replays it.

scripts/simulate --seeds 0:200 [--nodes 3|5] [--profile NAME] [--break NAME] [--first] [--trace]
scripts/simulate --power [NAME ...] [--jobs N]
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import time
import traceback
import warnings

from tests.simulation import power
from tests.simulation.breaks import BREAKS, broken
from tests.simulation.checks import Violation
from tests.simulation.profiles import PROFILES
from tests.simulation.world import World


def seed_range(text: str) -> range:
    """Read `A:B`, or a single seed. Raises ValueError."""
    first, _, last = text.partition(":")
    return range(int(first), int(last or int(first) + 1))


# What argparse calls a value that is none.
seed_range.__name__ = "range of seeds"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/simulate",
        description="Simulate a cluster under faults from each seed; print a line for each that fails, with the command that replays it.",
    )
    parser.add_argument(
        "--seeds", type=seed_range, default="0:20", metavar="A:B", help="seeds A up to, and without, B; or one seed"
    )
    parser.add_argument("--nodes", type=int, default=3, choices=(1, 3, 5))
    parser.add_argument("--profile", default="mix", choices=sorted(PROFILES))
    parser.add_argument("--break", dest="broken", choices=sorted(BREAKS), help="switch one protection off")
    parser.add_argument(
        "--power",
        nargs="*",
        metavar="NAME",
        help="how many seeds it takes until each break, and each mutant that a seed must notice, is noticed; or those named",
    )
    parser.add_argument("--jobs", type=int, default=1, help="with --power: so many seeds at a time")
    parser.add_argument("--first", action="store_true", help="stop at the first failing seed")
    parser.add_argument("--trace", action="store_true", help="say what happens")
    parser.add_argument("--verbose", action="store_true", help="with the nodes' own log")
    return parser.parse_args()


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, Violation) else f"{type(error).__name__}: {error}"


def main() -> int:
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The engine iterates over sets of nodes, and a seed must mean the same run every time.
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    args = parse()
    if args.power is not None:
        return power.main(args.power, args.jobs)
    # A process that is killed leaves coroutines that never began.
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
    if args.verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="           %(name)s %(message)s")
    else:
        logging.disable(logging.CRITICAL)
    failed = acknowledged = faults = done = 0
    virtual = 0.0
    began, cpu = time.monotonic(), time.process_time()
    for seed in args.seeds:
        with broken(args.broken):
            world = World(seed, args.nodes, PROFILES[args.profile], print if args.trace else None)
            try:
                world.run()
            except Exception as error:
                failed += 1
                if not isinstance(error, Violation):
                    # What no node caught, as when one starts on what its disk never held.
                    traceback.print_exception(error, file=sys.stdout)
                at = world.loop.now - 1000
                extra = f" --break {args.broken}" if args.broken else ""
                print(
                    f"seed {seed} at {at:.3f} s: {_said(error)}\n"
                    f"    scripts/simulate --seeds {seed}:{seed + 1} --nodes {args.nodes} --profile {args.profile}{extra} --trace",
                    flush=True,
                )
                if bugs := sum(engine.machine.errors for engine in world.engines()):
                    print(f"    {bugs} operations failed in a way that is a bug: --verbose says how")
        done += 1
        acknowledged += world.checks.acknowledged
        faults += world.faults
        virtual += world.loop.now - 1000
        if failed and args.first:
            break
        if done % 20 == 0:
            gc.collect()  # a world is full of circles
    seconds = time.monotonic() - began
    print(f"{virtual / max(seconds, 1e-9):.0f} virtual seconds a second")
    print(
        f"{done} seeds, {failed} failed, {acknowledged} operations acknowledged, {faults} faults injected, "
        f"{(time.process_time() - cpu) / max(done, 1):.2f} s a seed"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
