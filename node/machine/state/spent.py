"""Tokens of deliveries that are over, so that none of them ends a later delivery of its job.

Digests are kept, beside the jobs: most have none. They go with their job. A job that is pushed under the id of one that is gone
(`removeOnComplete`, a job that was removed, a queue that was obliterated) is kept from its tokens by their form.
"""

from __future__ import annotations

import re
from hashlib import blake2b

# Deliveries of one job that are known one by one; of those before them no token is told from any other.
SPENT_MAX = 40
ANY_TOKEN = 0
# What `PullJobs` makes of the seed of an edge (32 hexadecimal digits): the token of some delivery under a lock.
MADE_TOKEN = re.compile(r"[0-9a-f]{32}-[0-9]{1,9}", re.ASCII)


def token_digest(token: str) -> int:
    """Return what is remembered of a token."""
    return int.from_bytes(blake2b(token.encode(), digest_size=7).digest(), "big")


class Spent:
    """Digests of spent tokens by job, the oldest first. ANY_TOKEN among them stands for those that nobody remembers."""

    __slots__ = ("by_job",)

    def __init__(self) -> None:
        self.by_job: dict[str, list[int]] = {}

    def add(self, job_id: str, token: str | None) -> None:
        """Remember a token whose delivery is over; None for one that was not kept."""
        digest = ANY_TOKEN if token is None else token_digest(token)
        found = self.by_job.setdefault(job_id, [])
        if digest not in found:
            found.append(digest)
            if len(found) > SPENT_MAX:
                found[:2] = [ANY_TOKEN]

    def holds(self, job_id: str, token: str) -> bool:
        """Whether a token is of an earlier delivery of a job, or may be."""
        found = self.by_job.get(job_id)
        return found is not None and (ANY_TOKEN in found or token_digest(token) in found)

    @staticmethod
    def is_made(token: str) -> bool:
        """Whether a token has the form of those that belong to locks, so that a run without a lock has never had it."""
        return MADE_TOKEN.fullmatch(token) is not None

    def copy(self, job_id: str, other_id: str) -> None:
        """Have a job remember the tokens of another one, too."""
        found = self.by_job.get(job_id)
        if found is not None:
            self.by_job[other_id] = list(found)

    def forget(self, job_id: str) -> None:
        """Forget what there was of a job."""
        self.by_job.pop(job_id, None)
