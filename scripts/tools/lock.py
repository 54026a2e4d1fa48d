"""Whether the lock files are up to date: what pyproject.toml asks for, all that it needs in turn, nothing else, each with its hashes.

Made by scripts/lock, which asks the package index.  This asks nobody: what a package needs stands in its metadata, and what is locked
is what is installed here.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

RUN, DEV = "requirements.lock", "requirements-dev.lock"
PIN = re.compile(r"([A-Za-z0-9._-]+)==([^ ;\\]+)(?: *; *([^\\]+?))? *\\?")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64} *\\?")


@dataclass(frozen=True)
class Pin:
    """A package of a lock file. here: whether its marker holds on this machine."""

    version: str
    here: bool


@dataclass(frozen=True)
class Metadata:
    """What an installed package says of itself."""

    version: str
    needs: tuple[Requirement, ...]


Installed = Callable[[str], Metadata | None]


class BadLock(Exception):
    """A lock file has a line that says something else than a package, its hash or a comment."""


def read(text: str) -> dict[str, Pin]:
    """Read a lock file. Raises BadLock, also for a package without a hash."""
    pins: dict[str, Pin] = {}
    hashed: set[str] = set()
    name = ""
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith("#"):
            continue
        if HASH.fullmatch(line) and name:
            hashed.add(name)
        elif found := PIN.fullmatch(line):
            name = canonicalize_name(found[1])
            marker = Requirement(f"{name}; {found[3]}").marker if found[3] else None
            pins[name] = Pin(found[2], marker is None or marker.evaluate())
        else:
            # An index or a folder to look in is each machine's own affair.
            raise BadLock(f"{line!r} has no place in a lock file")
    if bare := pins.keys() - hashed:
        raise BadLock(f"{', '.join(sorted(bare))} without a hash")
    return pins


def installed(name: str) -> Metadata | None:
    """Return the metadata of a package that is installed here."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return None
    needs = tuple(Requirement(text) for text in found.requires or ())
    return Metadata(found.version, tuple(need for need in needs if holds(need, "")))


def holds(need: Requirement, extra: str) -> bool:
    return need.marker is None or need.marker.evaluate({"extra": extra})


def troubles(asked: Iterable[Requirement], pins: dict[str, Pin], known: Installed) -> list[str]:
    """Say what is wrong with a lock: what it lacks, what it has in a version that is not asked for, what nobody needs."""
    found: list[str] = []
    seen: set[str] = set()
    waiting = [("pyproject.toml", need) for need in asked if holds(need, "")]
    while waiting:
        by, need = waiting.pop()
        name = canonicalize_name(need.name)
        if (pin := pins.get(name)) is None:
            found.append(f"{name} is missing, which {by} needs")
            continue
        if not need.specifier.contains(pin.version, prereleases=True):
            found.append(f"{name} is locked at {pin.version}, but {by} needs {need}")
        if name in seen:
            continue
        seen.add(name)
        metadata = known(name)
        if metadata is None or metadata.version != pin.version:
            has = "not" if metadata is None else f"as {metadata.version}"
            found.append(f"{name} is locked at {pin.version}, but installed {has}: remove .venv and begin anew")
        else:
            waiting += [(name, one) for one in metadata.needs]
    nobody = {name for name, pin in pins.items() if pin.here} - seen
    return found + [f"{name} is locked, but nobody needs it" for name in sorted(nobody)]


def check(root: Path, known: Installed = installed) -> list[str]:
    """Return what is wrong with the lock files of a checkout; empty when they are up to date."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    run = [Requirement(text) for text in project["dependencies"]]
    dev = [Requirement(text) for text in project["optional-dependencies"]["dev"]]
    found: list[str] = []
    locks: list[dict[str, Pin]] = []
    for name, asked in ((RUN, run), (DEV, [*run, *dev])):
        try:
            pins = read((root / name).read_text("utf-8"))
        except (OSError, BadLock) as error:
            return [f"{name}: {error}"]
        locks.append(pins)
        found += [f"{name}: {text}" for text in troubles(asked, pins, known)]
    apart = [name for name, pin in locks[0].items() if locks[1].get(name) != pin]
    return found + [f"{name} is not the same in {RUN} and {DEV}" for name in apart]


def main() -> int:
    found = check(Path())
    for text in found:
        print(text)
    if found:
        print("the lock files are out of date: run scripts/lock")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
