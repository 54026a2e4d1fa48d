"""Which jobs wait for which, in order of their creation, whatever their number and in whatever order they came.

Few of them, which is nearly always, are a list; many are pieces of lists (`Ranked`), or to take one out of a hundred thousand would
take as long as to look at all of them.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Iterator
from operator import attrgetter

from quorumq.node.machine.state.job import Job
from quorumq.node.machine.state.ranked import Ranked

LISTED_MAX = 500
_by_birth = attrgetter("seq")

# Ids of completed jobs that are remembered after their records are gone, for jobs that depend on them.
REMEMBERED_MAX = 10_000


class Dependents:
    """Jobs by the id of a job that they wait for."""

    __slots__ = ("by_id",)

    def __init__(self) -> None:
        self.by_id: dict[str, list[Job] | Ranked] = {}

    def __len__(self) -> int:
        return len(self.by_id)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self.by_id

    def of(self, job_id: str) -> Iterable[Job]:
        """Return those that wait for a job."""
        return self.by_id.get(job_id, ())

    def count(self, job_id: str) -> int:
        """Return how many wait for a job."""
        waiting = self.by_id.get(job_id)
        return 0 if waiting is None else len(waiting)

    def items(self) -> Iterator[tuple[str, Iterable[Job]]]:
        """Iterate over all ids that are waited for."""
        return iter(self.by_id.items())

    def add(self, job_id: str, job: Job) -> None:
        """Let a job wait for another one."""
        waiting = self.by_id.get(job_id)
        if waiting is None:
            self.by_id[job_id] = [job]
        elif isinstance(waiting, Ranked):
            waiting.add(job.seq, job)
        elif len(waiting) < LISTED_MAX:
            if waiting[-1].seq < job.seq:
                waiting.append(job)
            else:
                insort(waiting, job, key=_by_birth)
        else:
            ranked = self.by_id[job_id] = Ranked()
            for each in (*waiting, job):
                ranked.add(each.seq, each)

    def remove(self, job_id: str, job: Job) -> None:
        """Let a job wait for another one no more."""
        waiting = self.by_id[job_id]
        if isinstance(waiting, Ranked):
            waiting.remove(job.seq)
        else:
            del waiting[bisect_left(waiting, job.seq, key=_by_birth)]
        if not len(waiting):
            del self.by_id[job_id]

    def take(self, job_id: str, count: int) -> list[Job]:
        """Take out the first so many that wait for a job."""
        waiting = self.by_id.get(job_id)
        if waiting is None:
            return []
        if isinstance(waiting, Ranked):
            taken = waiting.pop_first(count)
        else:
            taken = waiting[:count]
            del waiting[:count]
        if not len(waiting):
            del self.by_id[job_id]
        return taken


class Remembered:
    """The last ids of completed jobs whose records are gone."""

    __slots__ = ("_ids", "_order")

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._order = deque(ids)
        self._ids = set(self._order)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._ids

    def add(self, job_ids: Iterable[str]) -> None:
        """Remember ids, forgetting the oldest past the bound."""
        ids, order = self._ids, self._order
        for job_id in job_ids:
            if job_id not in ids:
                ids.add(job_id)
                order.append(job_id)
        while len(order) > REMEMBERED_MAX:
            ids.discard(order.popleft())

    def ids(self) -> list[str]:
        """Return the ids, oldest first."""
        return list(self._order)
