"""Jobs in order of an integer rank: the index behind every ordered set of a queue.

Nearly all additions are at the end (a push) and nearly all removals at the front (a pull); both touch one short list.
Anything else costs a binary search. An entry takes 16 bytes. node/DESIGN.md has what sortedcontainers' structures take.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import chain

from quorumq.node.machine.state.job import Job

# Entries of one piece; a removal at the front of a full piece moves this many pointers.
PIECE = 512


class Ranked:
    """A sorted map from rank to job. Ranks are unique."""

    __slots__ = ("_jobs", "_ranks", "_size", "_tops")

    def __init__(self) -> None:
        # Piece i holds the ranks _ranks[i] in order, the jobs _jobs[i] beside them, and its greatest rank in _tops[i].
        self._ranks: list[list[int]] = []
        self._jobs: list[list[Job]] = []
        self._tops: list[int] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Job]:
        return chain.from_iterable(self._jobs)

    def first(self) -> Job | None:
        """Return the job of the lowest rank."""
        return self._jobs[0][0] if self._size else None

    def last(self) -> Job | None:
        """Return the job of the highest rank."""
        return self._jobs[-1][-1] if self._size else None

    def add(self, rank: int, job: Job) -> None:
        """Put a job in; its rank must be new."""
        self._size += 1
        tops = self._tops
        if not tops:
            self._ranks.append([rank])
            self._jobs.append([job])
            tops.append(rank)
            return
        if rank > tops[-1]:
            ranks = self._ranks[-1]
            if len(ranks) < PIECE:
                ranks.append(rank)
                self._jobs[-1].append(job)
                tops[-1] = rank
            else:
                self._ranks.append([rank])
                self._jobs.append([job])
                tops.append(rank)
            return
        piece = bisect_left(tops, rank)
        ranks, jobs = self._ranks[piece], self._jobs[piece]
        place = bisect_left(ranks, rank)
        assert ranks[place] != rank, rank
        ranks.insert(place, rank)
        jobs.insert(place, job)
        if len(ranks) > 2 * PIECE:
            self._ranks.insert(piece + 1, ranks[PIECE:])
            self._jobs.insert(piece + 1, jobs[PIECE:])
            del ranks[PIECE:], jobs[PIECE:]
            tops.insert(piece, ranks[-1])

    def remove(self, rank: int) -> Job:
        """Take out the job of this rank. Raises KeyError."""
        piece = bisect_left(self._tops, rank)
        if piece == len(self._tops):
            raise KeyError(rank)
        ranks = self._ranks[piece]
        place = bisect_left(ranks, rank)
        if ranks[place] != rank:
            raise KeyError(rank)
        self._size -= 1
        del ranks[place]
        job = self._jobs[piece].pop(place)
        if not ranks:
            del self._ranks[piece], self._jobs[piece], self._tops[piece]
        elif place == len(ranks):
            self._tops[piece] = ranks[-1]
        return job

    def pop_first(self, count: int) -> list[Job]:
        """Take out up to `count` jobs of the lowest ranks, in order."""
        taken: list[Job] = []
        while count > 0 and self._size:
            ranks, jobs = self._ranks[0], self._jobs[0]
            if count < len(ranks):
                part = jobs[:count]
                del ranks[:count], jobs[:count]
            else:
                part = jobs
                del self._ranks[0], self._jobs[0], self._tops[0]
            count -= len(part)
            self._size -= len(part)
            taken = taken + part if taken else part
        return taken

    def around(self, rank: int, count: int) -> list[Job]:
        """Return up to `count` jobs on each side of a rank, the nearest ones, and never none while there are any."""
        piece = bisect_left(self._tops, rank)
        place = bisect_left(self._ranks[piece], rank) if piece < len(self._tops) else 0
        found: list[Job] = []
        if piece:
            found += self._jobs[piece - 1][-max(count - place, 1) :]
        if piece < len(self._jobs):
            found += self._jobs[piece][max(place - count, 0) : place + count]
        if piece + 1 < len(self._jobs):
            found += self._jobs[piece + 1][:count]
        return found

    def holds(self, rank: int) -> bool:
        """Whether there is a job of this rank."""
        piece = bisect_left(self._tops, rank)
        if piece == len(self._tops):
            return False
        ranks = self._ranks[piece]
        return ranks[bisect_left(ranks, rank)] == rank

    def below(self, rank: int) -> int:
        """Return how many jobs have a lower rank."""
        piece = bisect_left(self._tops, rank)
        count = sum(map(len, self._ranks[:piece]))
        return count if piece == len(self._ranks) else count + bisect_left(self._ranks[piece], rank)

    def after(self, rank: int | None, limit: int) -> list[tuple[int, Job]]:
        """Return up to `limit` jobs of ranks above this one, or from the first, in order and each with its rank."""
        found: list[tuple[int, Job]] = []
        piece = 0 if rank is None else bisect_right(self._tops, rank)
        place = 0 if rank is None or piece == len(self._tops) else bisect_right(self._ranks[piece], rank)
        while piece < len(self._jobs) and len(found) < limit:
            end = place + limit - len(found)
            found += zip(self._ranks[piece][place:end], self._jobs[piece][place:end], strict=True)
            piece, place = piece + 1, 0
        return found

    def slice(self, offset: int, limit: int | None) -> list[Job]:
        """Return jobs by position, without walking over those before `offset` one by one."""
        found: list[Job] = []
        for piece in self._jobs:
            if offset >= len(piece):
                offset -= len(piece)
                continue
            end = None if limit is None else offset + limit - len(found)
            found += piece[offset:end]
            offset = 0
            if limit is not None and len(found) >= limit:
                break
        return found
