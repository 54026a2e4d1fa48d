"""Why writes paused after the leader was killed: what the nodes' logs say of it, and what the machine did meanwhile.

A pause has four parts, each bounded by a line of a log: until the death was noticed, until somebody stood, until somebody led, until the
first entry of the new leader was committed; the rest is the client's way. A node that waits for a processor does so in whichever of them it
is, so the kernel's own count of that (schedstat) stands beside them.
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import threading
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import msgspec

from tests.support.local_cluster import LocalNode

LINE = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (\w+) (\S+) (\S+): (.*)$")
SHOWN = ("quorumq.raft", "quorumq.cluster", "quorumq.log", "quorumq.peers", "quorumq.clock", "quorumq")
NOTICED = re.compile(r"lost the connection to |asks who would vote")
LOOK_S = 0.02
SYNC_EVERY_S = 0.1
SLOW = re.compile(r"a write of the log took (\d+) ms")
PARTS = ("noticed", "stood", "led", "committed", "answered")


class Machine(msgspec.Struct):
    """What was counted between two moments. waited_ms: by node, how long its threads waited for a processor, the longest of them.

    stolen_ms: what the hypervisor took from all processors.  late_ms: by how much the client's own timer was late at most.
    sync_ms: how long a sync of a file of the client's own took at most, on the disk that the nodes' logs are on.
    """

    waited_ms: dict[str, float]
    stolen_ms: float
    late_ms: float
    sync_ms: float = 0.0


class Pause(msgspec.Struct):
    """One round. ms: the longest pause from the kill on.  first_ms: the one in which the leader died.

    parts: of the longest, milliseconds by part, None where no line bounds it.  lines: what the nodes that lived said meanwhile.
    """

    round: int
    ms: float
    first_ms: float
    parts: dict[str, float | None]
    machine: Machine
    errors: list[str]
    lines: list[str]

    @property
    def why(self) -> str:
        """The reason in a few words: the longest part, and what explains it."""
        known = {part: ms for part, ms in self.parts.items() if ms is not None}
        part = max(known, key=lambda each: known[each], default="answered")
        elected = any(known.get(each) is not None for each in ("noticed", "stood", "led"))
        words = {
            "noticed": "the death was noticed late",
            "stood": "nobody stood for long",
            "led": "it took long to be elected",
            "committed": "the first entry took long",
            "answered": "the client was answered late" if elected else "no election, a later write took long",
        }[part]
        slow = max((float(ms) for text in self.lines for ms in SLOW.findall(text)), default=0.0)
        if slow > self.ms / 2:
            words = "the disk stood still"
        evidence = [f"{known.get(part, self.ms):.0f} ms"]
        for node, waited in self.machine.waited_ms.items():
            if waited > self.ms / 4:
                evidence.append(f"{node} waited {waited:.0f} ms for a processor")
        if self.machine.late_ms > self.ms / 4:
            evidence.append(f"the client itself was {self.machine.late_ms:.0f} ms late")
        if self.machine.sync_ms > self.ms / 4:
            evidence.append(f"another process's sync on the same disk took {self.machine.sync_ms:.0f} ms")
        if self.machine.stolen_ms > self.ms / 4:
            evidence.append(f"{self.machine.stolen_ms:.0f} ms were stolen from the machine")
        told = (text for text in self.lines if "stood still" in text or "a write of the log took" in text)
        evidence.extend(f"{text.split(' ', 2)[1]}: {text.split(': ', 1)[1]}" for text in told)
        tries = sum("stands in term" in text for text in self.lines)
        if tries > 1:
            evidence.append(f"{tries} elections")
        return f"{words}: {'; '.join(evidence)}"


def _delays(pid: int) -> dict[str, int]:
    """Nanoseconds that each thread of a process has waited for a processor."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found[task.name] = int((task / "schedstat").read_text().split()[1])
        except OSError:
            continue  # the thread has ended
    return found


def _stolen_ms() -> float:
    return int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8]) * 10.0


class Meter:
    """Looks all the time at what the machine does to these nodes, and at by how much it comes late itself.

    What its client measures cannot be more exact than that.
    """

    def __init__(self, nodes: Iterable[LocalNode], folder: Path) -> None:
        self._syncs: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sync, args=(folder / "probe",), daemon=True)
        self._thread.start()
        self._pids = {node.id: node.pid for node in nodes}
        self._looks: list[tuple[float, dict[str, dict[str, int]], float, float]] = []
        self._look(0.0)
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(LOOK_S)
            self._look(time.monotonic() - began - LOOK_S)

    def _sync(self, path: Path) -> None:
        with path.open("wb", buffering=0) as file:
            while not self._over.wait(SYNC_EVERY_S):
                began = time.monotonic()
                file.write(bytes(512))
                os.fdatasync(file.fileno())
                self._syncs.append((began, time.monotonic()))

    def _look(self, late_s: float) -> None:
        waited = {node: _delays(pid) for node, pid in self._pids.items()}
        self._looks.append((time.monotonic(), waited, _stolen_ms(), late_s * 1000))

    def read(self, began: float, ended: float) -> Machine:
        """What was counted between two moments of time.monotonic(); nothing is looked at any more."""
        self._task.cancel()
        self._over.set()
        self._look(0.0)
        first = max(
            (look for look in self._looks if look[0] <= began), default=self._looks[0], key=lambda look: look[0]
        )
        last = next((look for look in self._looks if look[0] >= ended), self._looks[-1])
        waited = {
            node: max((ns - first[1][node].get(task, 0) for task, ns in last[1][node].items()), default=0) / 1e6
            for node in self._pids
        }
        late = max((look[3] for look in self._looks if began <= look[0] <= last[0]), default=0.0)
        syncs = [(end - begin) * 1000 for begin, end in self._syncs if begin < ended and end > began]
        return Machine(waited, last[2] - first[2], late, max(syncs, default=0.0))


def said(nodes: Iterable[LocalNode], began: float, ended: float) -> list[str]:
    """Lines of these nodes' logs between two moments (seconds since the epoch), in order; each begins with its milliseconds."""
    found: list[tuple[float, str]] = []
    for node in nodes:
        for raw in node.log_text().splitlines():
            match = LINE.match(raw)
            if match is None or match[4] not in SHOWN:
                continue
            at = datetime.fromisoformat(match[1]).timestamp()
            if began - 0.001 <= at <= ended + 0.02:
                found.append((at, f"{(at - began) * 1000:+.0f} {node.id} {match[2]}: {match[5]}"))
    return [text for _, text in sorted(found, key=lambda each: each[0])]


def _at(lines: list[str], pattern: str | re.Pattern[str], *, last: bool = False) -> float | None:
    times = [float(text.split(" ", 1)[0]) for text in lines if re.search(pattern, text)]
    return None if not times else times[-1] if last else times[0]


def parts_of(lines: list[str], ms: float) -> dict[str, float | None]:
    """Cut a pause of so many milliseconds, which begins at 0, by what the logs say."""
    ends = {
        "noticed": _at(lines, NOTICED),
        "stood": _at(lines, "stands in term"),
        "led": _at(lines, r": leads in term", last=True),
        "committed": _at(lines, "the first entry of term", last=True),
        "answered": ms,
    }
    parts: dict[str, float | None] = {}
    before = 0.0
    for part in PARTS:
        end = ends[part]
        parts[part] = None if end is None else max(end - before, 0.0)
        before = before if end is None else max(before, end)
    return parts


def wall(monotonic: float) -> float:
    """Seconds since the epoch of a moment by time.monotonic()."""
    return time.time() - (time.monotonic() - monotonic)


def _quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _figures(name: str, times: list[float], over_ms: float) -> str:
    figures = (statistics.median(times), _quantile(times, 0.9), _quantile(times, 0.99), max(times))
    return f"{name:<28}" + "".join(f"{ms:>8.0f}" for ms in figures) + f"{sum(ms > over_ms for ms in times):>8}"


def table(pauses: list[Pause], over_ms: float) -> str:
    """Figures of all rounds, and the story of each that took longer than `over_ms`."""
    times, first = [pause.ms for pause in pauses], [pause.first_ms for pause in pauses]
    errors = sum(len(pause.errors) for pause in pauses)
    rows = [
        f"{len(pauses)} rounds, {errors} errors   median     p90     p99     max   over {over_ms:.0f} ms",
        _figures("until a new leader answers", first, over_ms),
        _figures("longest pause meanwhile", times, over_ms),
        "",
        "medians of the parts: "
        + ", ".join(
            f"{part} {statistics.median(known):.0f}"
            for part in PARTS
            if (known := [ms for pause in pauses if (ms := pause.parts[part]) is not None])
        ),
    ]
    for pause in sorted(pauses, key=lambda each: -each.ms):
        if pause.ms <= over_ms:
            break
        rows += ["", f"round {pause.round}: {pause.ms:.0f} ms. {pause.why}"]
        rows.append(
            "    " + ", ".join(f"{part} {'?' if ms is None else f'{ms:.0f}'}" for part, ms in pause.parts.items())
        )
        rows += [f"    {text}" for text in pause.lines]
    return "\n".join(rows)
