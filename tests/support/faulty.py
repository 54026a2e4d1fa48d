"""A node on a machine whose wall clock and disk go wrong when somebody outside wants it: for tests with real processes.

`python tests/support/faulty.py FOLDER ARGUMENTS …` is `quorumq ARGUMENTS …`, except that files in FOLDER, looked at at every call,
are faults. `clock`: the wall clock is off by so many milliseconds. `hang`: while it is there, no sync returns. `hang-child`: the same in
forked processes only. `slow`: each sync takes so many milliseconds longer.

Nothing of this is in the package that is installed, and nobody comes by it by accident: it refuses to start unless the environment has
QUORUMQ_TEST_FAULTS with the words below, and what starts says loudly what it is.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

_POLL_S = 0.02
ALLOWED_BY = "QUORUMQ_TEST_FAULTS"
ALLOWED = "this node may be broken"
WARNING = "FAULTS ARE ON: this is a node for tests; its clock and its disk are wrong when {folder} says so"
REFUSAL = f"faulty.py breaks nodes, for tests only: it starts none without {ALLOWED_BY}='{ALLOWED}'"


def number_in(file: Path) -> int:
    """What a file says; 0 while there is none."""
    try:
        return int(file.read_text() or "0")
    except FileNotFoundError:
        return 0


def wall_clock(file: Path) -> None:
    """Have the time of day off by what `file` says."""
    real_ns = time.time_ns
    time.time_ns = lambda: real_ns() + number_in(file) * 1_000_000
    time.time = lambda: time.time_ns() / 1e9


def hanging(
    sync: Callable[[int], None], hangs: Callable[[], bool], slow_ms: Callable[[], int] = lambda: 0
) -> Callable[[int], None]:
    """Return a sync that does not return while `hangs` says so, and takes `slow_ms` longer."""

    def synced(handle: int) -> None:
        while hangs():
            time.sleep(_POLL_S)
        if wait_ms := slow_ms():
            time.sleep(wait_ms / 1000)
        sync(handle)

    return synced


def break_machine(folder: Path) -> None:
    parent = os.getpid()
    wall_clock(folder / "clock")

    def hangs() -> bool:
        return (folder / "hang").exists() or (os.getpid() != parent and (folder / "hang-child").exists())

    def slow_ms() -> int:
        return number_in(folder / "slow")

    os.fsync = hanging(os.fsync, hangs, slow_ms)  # type: ignore[assignment]
    os.fdatasync = hanging(os.fdatasync, hangs, slow_ms)


class Machine:
    """The faults of one node's machine, as seen by whoever wants them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    @property
    def program(self) -> tuple[str, ...]:
        """The command of a node on this machine."""
        return (sys.executable, str(Path(__file__).resolve()), str(self.folder))

    @property
    def settings(self) -> dict[str, str]:
        """What its environment has to say besides."""
        return {ALLOWED_BY: ALLOWED}

    def _say(self, name: str, number: int) -> None:
        # Renamed into place, so that it is never read half written.
        draft = self.folder / f"{name}.new"
        draft.write_text(str(number))
        draft.rename(self.folder / name)

    def set_clock(self, off_ms: int) -> None:
        """Have the wall clock off by so much; 0 puts it right."""
        self._say("clock", off_ms)

    def slow(self, ms: int) -> None:
        """Have each sync take so much longer; 0 ends it."""
        self._say("slow", ms)

    def hang(self) -> None:
        """Have no sync return."""
        (self.folder / "hang").touch()

    def answer(self) -> None:
        """End that."""
        (self.folder / "hang").unlink(missing_ok=True)

    def heal(self) -> None:
        """End everything."""
        self.answer()
        self.slow(0)
        self.set_clock(0)


if __name__ == "__main__":
    if os.environ.get(ALLOWED_BY) != ALLOWED:
        sys.exit(REFUSAL)
    folder = Path(sys.argv[1])
    if not folder.is_dir():
        sys.exit(f"{folder} is no folder of faults")
    sys.stderr.write(f"\n{'!' * 100}\n{WARNING.format(folder=folder)}\n{'!' * 100}\n\n")
    break_machine(folder)
    del sys.argv[1]
    # The folder of this file must not hide a package, and an older version has other names.
    sys.path.pop(0)
    sys.path.insert(0, os.environ.get("QUORUMQ_FROM", os.getcwd()))
    name = "cli.main" if "QUORUMQ_FROM" in os.environ else "quorumq.cli.main"
    sys.exit(importlib.import_module(name).main())
