"""scripts/mutants: put one plausible bug after the other into a copy of the tree, and see that what must notice it does.

The bugs are data: tests/mutants/*.toml, whose fields `Mutant` says. What was found is kept in build/mutants.jsonl, so that a run that was
stopped goes on where it was; a mutant runs again when it, the file that it changes, or what must notice it has changed.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).parents[2]
LISTS = ROOT / "tests" / "mutants"
KEPT = ROOT / "build" / "mutants.jsonl"
PACKAGES = ("cluster", "node", "api", "cli")
COPIED = (
    *PACKAGES,
    "quorumq",
    "tests",
    "scripts",
    "docs",
    "examples",
    "deploy",
    "pyproject.toml",
    "CHANGELOG.md",
    "README.md",
)
LIMIT_S = 1800
HUNG = 5
"""What takes so many times as long as without the bug comes to no end; what does not may only be slow."""
NOTICED, SURVIVED, UNUSABLE = "noticed", "survived", "unusable"


class Mutant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One bug.

    name: says what is missing.  file: from the root.  was, becomes: the text that is replaced; it is there once.
    tests: what pytest is given; one of them fails.  simulate: what scripts/simulate is given; a seed fails.  One of the two is there.
    quick: whether CI runs it.
    """

    name: str
    file: str
    was: str
    becomes: str
    tests: list[str] = []
    simulate: str = ""
    quick: bool = False


class Misfit(Exception):
    """A mutant that does not apply to this tree."""


def mutants(only: str = "") -> list[Mutant]:
    """Those of the list of this name, or with this in their names; all without. Raises Misfit for a list that cannot be read."""
    lists: dict[str, list[Mutant]] = {}
    for path in sorted(LISTS.glob("*.toml")):
        try:
            lists[path.stem] = msgspec.convert(tomllib.loads(path.read_text())["mutant"], list[Mutant])
        except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
            raise Misfit(f"{path.name}: {error}") from None
    names = [each.name for found in lists.values() for each in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise Misfit(f"named twice: {', '.join(sorted(twice))}")
    if only in lists:
        return lists[only]
    return [each for found in lists.values() for each in found if only in each.name]


def mutated(mutant: Mutant) -> str:
    """The text of its file with the bug in it. Raises Misfit when it does not apply, or makes no program."""
    try:
        text = (ROOT / mutant.file).read_text()
    except FileNotFoundError:
        raise Misfit(f"{mutant.name}: there is no {mutant.file}") from None
    times = text.count(mutant.was)
    if times != 1:
        raise Misfit(f"{mutant.name}: its text is {times} times in {mutant.file}, not once")
    if bool(mutant.tests) == bool(mutant.simulate):
        raise Misfit(f"{mutant.name}: tests, or a simulation, must notice it")
    if missing := [each for each in mutant.tests if not (ROOT / each.partition("::")[0]).exists()]:
        raise Misfit(f"{mutant.name}: there is no {missing[0]}")
    for selection in mutant.tests:
        path, _, test = selection.partition("::")
        if test and f"def {test.partition('[')[0]}(" not in (ROOT / path).read_text():
            raise Misfit(f"{mutant.name}: there is no {selection}")
    if mutant.was == mutant.becomes:
        raise Misfit(f"{mutant.name}: changes nothing")
    changed = text.replace(mutant.was, mutant.becomes)
    try:
        compile(changed, mutant.file, "exec", ast.PyCF_ONLY_AST)
    except SyntaxError as error:
        raise Misfit(f"{mutant.name}: {error}") from None
    return changed


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the tree, in a folder of its own; the checkout is never changed."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                # With what was compiled, for a file that is changed is newer than that; but not while that is written.
                shutil.copytree(source, copy / name, symlinks=True, ignore=shutil.ignore_patterns("*.pyc.*"))
            else:
                shutil.copy(source, copy / name)
        yield copy


def run(copy: Path, mutant: Mutant) -> subprocess.CompletedProcess[str]:
    """What must notice it, on the copy as it is now."""
    command = [sys.executable, "-m"]
    if mutant.tests:
        command += ["pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not long", *mutant.tests]
    else:
        command += ["tests.simulation", "--first", *mutant.simulate.split()]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def tried(copy: Path, mutant: Mutant, sound_s: float = 0.0) -> tuple[str, str]:
    """Put the bug into the copy, run what must notice it, and take it out; returns what came of it, and the end of what was said.

    sound_s: how long that takes without the bug.
    """
    target = copy / mutant.file
    whole = target.read_text()
    try:
        target.write_text(mutated(mutant))
        done = run(copy, mutant)
    except subprocess.TimeoutExpired:
        # A program that comes to no end is noticed by whoever waits for it.
        return NOTICED if sound_s * HUNG <= LIMIT_S else UNUSABLE, f"no end after {LIMIT_S} s"
    finally:
        target.write_text(whole)
    said = (done.stdout + done.stderr)[-3000:]
    if done.returncode == 0:
        return SURVIVED, said
    # 1: a test, or a seed, has failed. Anything else means that nothing was tried.
    if done.returncode != 1 or ("failed" not in said and "error" not in said):
        return UNUSABLE, said
    return NOTICED, said


def fingerprint(mutant: Mutant, tree: Path = ROOT) -> str:
    """Changes when there is a reason to run it again."""
    hashed = hashlib.sha256(msgspec.json.encode(mutant))
    files = {tree / mutant.file, *(tree / each.partition("::")[0] for each in mutant.tests)}
    if mutant.simulate:
        files |= {path for folder in ("cluster", "tests/simulation") for path in (tree / folder).glob("*.py")}
    for path in sorted(files):
        for each in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            hashed.update(each.read_bytes())
    return hashed.hexdigest()[:16]


class Kept:
    """What is known, by fingerprint, and the file that it is kept in."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.known: dict[str, dict[str, Any]] = {each["of"]: each for each in map(json.loads, lines)}

    def add(self, result: dict[str, Any]) -> None:
        """Keep one more."""
        self.known[result["of"]] = result
        self._path.parent.mkdir(exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(result) + "\n")


def tree_of(copy: Path) -> str:
    """Changes with any program in it."""
    hashed = hashlib.sha256()
    for folder in (*PACKAGES, "tests", "scripts"):
        for path in sorted((copy / folder).rglob("*.py")):
            hashed.update(path.read_bytes())
    return hashed.hexdigest()[:16]


def sound(copy: Path, mutant: Mutant, kept: Kept) -> tuple[str, float]:
    """What is wrong with what must notice it, on the tree as it is, and the seconds that it takes.

    What fails there would notice anything.
    """
    of = hashlib.sha256(repr((tree_of(copy), mutant.tests, mutant.simulate)).encode()).hexdigest()[:16]
    if of in kept.known:
        return "", kept.known[of]["seconds"]
    began = time.monotonic()
    try:
        done = run(copy, mutant)
    except subprocess.TimeoutExpired:
        return f"takes more than {LIMIT_S} s without any bug", LIMIT_S
    seconds = round(time.monotonic() - began, 1)
    if done.returncode:
        return f"fails without any bug\n{(done.stdout + done.stderr)[-3000:]}", seconds
    # What fails is not kept: it may have been the machine's fault.
    kept.add({"of": of, "name": "-", "outcome": "", "seconds": seconds})
    return "", seconds


def part(copy: Path, mutant: Mutant, kept: Kept) -> dict[str, Any]:
    """Try one, and keep what came of it."""
    wrong, sound_s = sound(copy, mutant, kept)
    began = time.monotonic()
    outcome, said = (UNUSABLE, wrong) if wrong else tried(copy, mutant, sound_s)
    seconds = round(time.monotonic() - began, 1)
    result = {
        "of": fingerprint(mutant, copy),
        "name": mutant.name,
        "outcome": outcome,
        "seconds": seconds,
        "said": said,
    }
    if outcome != UNUSABLE:
        kept.add(result)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/mutants", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", default="", metavar="PART", help="those with this in their names, or of this list")
    parser.add_argument("--quick", action="store_true", help="those that CI runs")
    parser.add_argument("--jobs", type=int, default=1, help="so many at a time")
    parser.add_argument("--keep", type=Path, default=KEPT, metavar="FILE", help="where what was found is kept")
    parser.add_argument("--again", action="store_true", help="also those that are known")
    parser.add_argument("--list", action="store_true", help="only say what there is, and what is known of it")
    parser.add_argument("--verbose", action="store_true", help="say what a survivor's tests said")
    args = parser.parse_args()
    try:
        chosen = [each for each in mutants(args.only) if each.quick or not args.quick]
        for each in chosen:
            mutated(each)
    except Misfit as misfit:
        print(misfit, file=sys.stderr)
        return 2
    kept = Kept(args.keep)
    known = {} if args.again else kept.known
    open_ = [each for each in chosen if fingerprint(each) not in known]
    if args.list:
        for each in chosen:
            outcome = known.get(fingerprint(each), {}).get("outcome", "not known")
            print(f"{each.name:50} {each.file:28} {outcome:10} {' '.join(each.tests) or 'simulate ' + each.simulate}")
        return 0
    print(f"{len(chosen)} mutants, {len(chosen) - len(open_)} known", flush=True)
    outcomes = {each.name: known[fingerprint(each)] for each in chosen if each not in open_}

    def lane(number: int) -> None:
        with copied() as copy:
            for mutant in open_[number :: args.jobs]:
                result = part(copy, mutant, kept)
                outcomes[mutant.name] = result
                print(f"{result['outcome']:9} {result['seconds']:6.1f} s  {mutant.name}", flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lane, range(args.jobs)))
    missed = [each for each in chosen if outcomes[each.name]["outcome"] != NOTICED]
    for each in missed:
        print(f"{outcomes[each.name]['outcome']}: {each.name} ({each.file})")
        if args.verbose:
            print(outcomes[each.name]["said"])
    print(f"{len(chosen) - len(missed)} of {len(chosen)} noticed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
