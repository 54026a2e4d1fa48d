"""Log lines of jobs, which workers and producers attach."""

from __future__ import annotations

from quorumq.node.machine.state.job import LogLine

# Log lines kept of one job, and jobs that have any; the oldest go first.
LOG_LINES_MAX = 100
LOGGED_JOBS_MAX = 10_000
# Of a job that is logged to over the backend protocol, and of all of those together; lines weigh LINE_BYTES beside their text.
LONG_LINES_MAX = 10_000
LONG_BYTES_MAX = 1 << 20
ALL_LONG_BYTES_MAX = 64 << 20
LINE_BYTES = 100


class Logs:
    """Lines by job, at most LOG_LINES_MAX of each; the job that was logged to last comes last, the one before all others goes first.

    long: jobs that may have more, with the bytes of their lines, in the same order.  long_size: of all of them.
    """

    __slots__ = ("by_job", "long", "long_size")

    def __init__(self) -> None:
        self.by_job: dict[str, list[LogLine]] = {}
        self.long: dict[str, int] = {}
        self.long_size = 0

    def add(self, job_id: str, line: LogLine, keep: int = LOG_LINES_MAX) -> int:
        """Attach a line to a job, of which the last `keep` stay (1 to LOG_LINES_MAX); return how many it has."""
        if job_id in self.long:
            return self.add_long(job_id, line)
        lines = self.by_job.pop(job_id, None) or []
        lines.append(line)
        del lines[: -min(max(keep, 1), LOG_LINES_MAX)]
        self.by_job[job_id] = lines
        if len(self.by_job) > LOGGED_JOBS_MAX:
            self.forget(next(iter(self.by_job)))
        return len(lines)

    def add_long(self, job_id: str, line: LogLine, keep: int | None = None) -> int:
        """Attach a line to a job that may have LONG_LINES_MAX, of LONG_BYTES_MAX together; return how many it has.

        keep: the last so many stay.
        """
        lines = self.by_job.pop(job_id, None) or []
        lines.append(line)
        size = self.long.pop(job_id, None)
        if size is None:
            size = sum(map(weight_of, lines))
            self.long_size += size
        else:
            size += weight_of(line)
            self.long_size += weight_of(line)
        most = LONG_LINES_MAX if keep is None else min(max(keep, 1), LONG_LINES_MAX)
        gone, left = 0, size
        while len(lines) - gone > most or (left > LONG_BYTES_MAX and len(lines) - gone > 1):
            left -= weight_of(lines[gone])
            gone += 1
        del lines[:gone]
        self.long_size -= size - left
        self.by_job[job_id], self.long[job_id] = lines, left
        while self.long_size > ALL_LONG_BYTES_MAX and len(self.long) > 1:
            self.forget(next(iter(self.long)))
        if len(self.by_job) > LOGGED_JOBS_MAX:
            self.forget(next(iter(self.by_job)))
        return len(lines)

    def clear(self, job_id: str, keep: int = 0) -> bool:
        """Drop a job's lines but for the last `keep`; say whether it had any."""
        lines = self.by_job.get(job_id)
        if lines is None:
            return False
        if keep > 0:
            del lines[:-keep]
            if job_id in self.long:
                size = sum(map(weight_of, lines))
                self.long_size -= self.long[job_id] - size
                self.long[job_id] = size
        else:
            self.forget(job_id)
        return True

    def forget(self, job_id: str) -> None:
        """A job goes: so do its lines."""
        if self.by_job.pop(job_id, None) is not None:
            self.long_size -= self.long.pop(job_id, 0)

    def rename(self, job_id: str, to: str) -> None:
        """A job has another id."""
        if job_id in self.by_job:
            self.by_job[to] = self.by_job.pop(job_id)
        if job_id in self.long:
            self.long[to] = self.long.pop(job_id)

    def restore_long(self, job_id: str) -> None:
        """Let a job, whose lines are there, be one that may have more."""
        self.long[job_id] = size = sum(map(weight_of, self.by_job[job_id]))
        self.long_size += size


def weight_of(line: LogLine) -> int:
    """Return the bytes that a line counts for."""
    return LINE_BYTES + len(line.message)
