"""Log lines of jobs, which workers and producers attach."""

from __future__ import annotations

from collections.abc import Iterable

from quorumq.node.machine.state.job import LogLine

# Log lines kept of one job, and jobs that have any; the oldest go first.
LOG_LINES_MAX = 100
LOGGED_JOBS_MAX = 10_000
# Of one job, and of all together, from feature level 1 on; lines weigh LINE_BYTES beside their text.
JOB_BYTES_MAX = 1 << 20
ALL_BYTES_MAX = 256 << 20
LINE_BYTES = 100
# Of a job that is logged to over the backend protocol, and of all of those together.
LONG_LINES_MAX = 10_000
ALL_LONG_BYTES_MAX = 64 << 20


class LogTable:
    """Lines by job, at most LOG_LINES_MAX of each; the job that was logged to last comes last, the one before all others goes first.

    sizes: bytes of the lines, by job, in the same order.  size: of all.  long: the same of jobs that may have more lines.
    """

    __slots__ = ("by_job", "long", "long_size", "size", "sizes")

    def __init__(self) -> None:
        self.by_job: dict[str, list[LogLine]] = {}
        self.sizes: dict[str, int] = {}
        self.size = 0
        self.long: dict[str, None] = {}
        self.long_size = 0

    def add(self, job_id: str, line: LogLine, keep: int = LOG_LINES_MAX, *, in_bytes: bool = True) -> int:
        """Attach a line to a job, of which the last `keep` stay (1 to LOG_LINES_MAX); return how many it has.

        in_bytes: as many as have JOB_BYTES_MAX.
        """
        if job_id in self.long:
            return self.add_long(job_id, line)
        return self._add(job_id, line, min(max(keep, 1), LOG_LINES_MAX), in_bytes=in_bytes)

    def add_long(self, job_id: str, line: LogLine, keep: int | None = None) -> int:
        """Attach a line to a job that may have LONG_LINES_MAX, of JOB_BYTES_MAX together; return how many it has.

        keep: the last so many stay.
        """
        if job_id in self.long:
            del self.long[job_id]
        else:
            self.long_size += self.sizes.get(job_id, 0)
        self.long[job_id] = None
        return self._add(job_id, line, LONG_LINES_MAX if keep is None else min(max(keep, 1), LONG_LINES_MAX))

    def _add(self, job_id: str, line: LogLine, most: int, *, in_bytes: bool = True) -> int:
        lines = self.by_job.pop(job_id, None) or []
        lines.append(line)
        before = self.sizes.pop(job_id, 0)
        gone, left = 0, before + weight_of(line)
        while len(lines) - gone > most or (in_bytes and left > JOB_BYTES_MAX and len(lines) - gone > 1):
            left -= weight_of(lines[gone])
            gone += 1
        del lines[:gone]
        self.by_job[job_id], self.sizes[job_id] = lines, left
        self._grew(job_id, left - before)
        while self.long_size > ALL_LONG_BYTES_MAX and len(self.long) > 1:
            self.forget(next(iter(self.long)))
        while in_bytes and self.size > ALL_BYTES_MAX and len(self.by_job) > 1:
            self.forget(next(iter(self.by_job)))
        if len(self.by_job) > LOGGED_JOBS_MAX:
            self.forget(next(iter(self.by_job)))
        return len(lines)

    def _grew(self, job_id: str, by: int) -> None:
        self.size += by
        if job_id in self.long:
            self.long_size += by

    def clear(self, job_id: str, keep: int = 0) -> bool:
        """Drop a job's lines but for the last `keep`; say whether it had any."""
        lines = self.by_job.get(job_id)
        if lines is None:
            return False
        if keep > 0:
            del lines[:-keep]
            before, self.sizes[job_id] = self.sizes[job_id], sum(map(weight_of, lines))
            self._grew(job_id, self.sizes[job_id] - before)
        else:
            self.forget(job_id)
        return True

    def forget(self, job_id: str) -> None:
        """A job goes: so do its lines."""
        if self.by_job.pop(job_id, None) is not None:
            self._grew(job_id, -self.sizes.pop(job_id))
            self.long.pop(job_id, None)

    def rename(self, job_id: str, to: str) -> None:
        """A job has another id."""
        if job_id in self.by_job:
            self.by_job[to], self.sizes[to] = self.by_job.pop(job_id), self.sizes.pop(job_id)
        if job_id in self.long:
            self.long[to] = self.long.pop(job_id)

    def restore(self, lines: Iterable[tuple[str, list[LogLine]]]) -> None:
        """Add lines from an image, in its order."""
        for job_id, logged in lines:
            self.by_job[job_id], self.sizes[job_id] = logged, sum(map(weight_of, logged))
            self.size += self.sizes[job_id]

    def restore_long(self, job_id: str) -> None:
        """Let a job, whose lines are there, be one that may have more."""
        self.long[job_id] = None
        self.long_size += self.sizes[job_id]


def weight_of(line: LogLine) -> int:
    """Return the bytes that a line counts for."""
    return LINE_BYTES + len(line.message)
