"""What clients of a release were told, and what contradicts it already while it is being told."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Told:
    """What clients know of one job. acked, attempted: by the fencing token of the delivery; seen: the highest one."""

    queue: str
    pushed: bool = False
    acked: int | None = None
    attempted: set[int] = field(default_factory=set)
    seen: int = 0


@dataclass
class Promises:
    """A push or an acknowledgement is a promise from the moment its 200 arrives. wrong: what was broken, in words."""

    jobs: dict[str, Told] = field(default_factory=dict)
    deliveries: dict[int, str] = field(default_factory=dict)
    highest_fence: int = 0
    wrong: list[str] = field(default_factory=list)

    def delivered(self, job_id: str, fence: int, highest_before: int) -> None:
        """A job was handed to a worker whose request was sent when `highest_before` had been seen by somebody."""
        if fence in self.deliveries:
            self.wrong.append(f"fencing token {fence} was given twice: with {self.deliveries[fence]} and with {job_id}")
        self.deliveries[fence] = job_id
        if fence <= highest_before:
            self.wrong.append(
                f"fencing token {fence} of {job_id} is not above {highest_before}, which was given before"
            )
        self.highest_fence = max(self.highest_fence, fence)
        told = self.jobs[job_id]
        told.seen = max(told.seen, fence)
        if told.acked is not None and fence > told.acked:
            self.wrong.append(f"{job_id} was delivered again ({fence}) after it was completed ({told.acked})")

    def completed(self, job_id: str, fence: int) -> None:
        """A worker's acknowledgement was answered with 200."""
        told = self.jobs[job_id]
        if told.acked not in (None, fence):
            self.wrong.append(f"{job_id} was completed twice, with tokens {told.acked} and {fence}")
        told.acked = fence
        if told.seen > fence:
            self.wrong.append(f"{job_id} was completed with token {fence}, and was delivered again with {told.seen}")
