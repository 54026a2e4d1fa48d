"""The invariants, and what is remembered to check them: every node's applied entries, leaders, disks, and every client's history."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field


class Violation(Exception):
    """An invariant does not hold. `invariant` is its short name."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant


SLEW = 1.06
"""How much longer or shorter a second of the log's clock may be."""
EARLY_S, LATE_S = 1.0, 12.0
"""How much a start of all nodes, and wall clocks that agree within a second, may take off a delay; a time without a leader add to it."""


@dataclass
class DiskPromise:
    """What a node's disk holds for sure."""

    term: int = 0
    voted_for: str | None = None
    commit: int = 1


@dataclass
class JobHistory:
    """One job as its clients saw it."""

    pushed: bool = False
    maybe_pushed: bool = False
    acked: bool = False
    maybe_acked: bool = False
    acked_fence: int = 0
    # Seconds: of its delay, when it was sent, and when it was known to be taken.
    delay_s: float = 0.0
    delayed_at: float = 0.0
    waits_since: float | None = None
    fences: list[int] = field(default_factory=list)


class Checks:
    """Told of everything that happens; raises Violation at the first thing that may not."""

    def __init__(self) -> None:
        self.entries: dict[int, int] = {}
        self.leaders: dict[int, str] = {}
        self.disks: dict[str, DiskPromise] = {}
        self.jobs: dict[str, JobHistory] = {}
        self.acknowledged = 0
        self.batches: dict[tuple[str, int, int], int] = {}
        self.first_violation: Violation | None = None
        self.added_keys: dict[str, list[str]] = {}
        self.adding_keys: dict[str, int] = {}

    def fail(self, invariant: str, text: str) -> None:
        violation = Violation(invariant, text)
        if self.first_violation is None:
            self.first_violation = violation
        raise violation

    # nodes

    def applied(self, node: str, index: int, command: bytes) -> None:
        digest = zlib.crc32(command)
        known = self.entries.setdefault(index, digest)
        if known != digest:
            self.fail("committed prefixes agree", f"{node} applied another entry at {index} than the others")

    def settled(self, node: str, key: tuple[str, int, int], index: int) -> None:
        known = self.batches.setdefault(key, index)
        if known != index:
            self.fail("applied once", f"batch {key} was applied at {known} and, on {node}, again at {index}")

    def leads(self, node: str, term: int) -> None:
        known = self.leaders.setdefault(term, node)
        if known != node:
            self.fail("one leader a term", f"{known} and {node} both lead in term {term}")

    def promised(self, node: str, term: int, voted_for: str | None, commit: int) -> None:
        """The node's log, as durable as it is now, holds these."""
        promise = self.disks.setdefault(node, DiskPromise())
        if (term, commit) < (promise.term, 0) or term < promise.term:
            self.fail("term never goes back", f"{node}: {promise.term} to {term}")
        if term == promise.term and promise.voted_for is not None and voted_for != promise.voted_for:
            self.fail("one vote a term", f"{node} voted for {promise.voted_for} and {voted_for} in term {term}")
        promise.term, promise.voted_for, promise.commit = term, voted_for, max(commit, promise.commit)

    def wiped(self, node: str) -> None:
        self.disks.pop(node, None)

    # clients

    def job(self, job_id: str) -> JobHistory:
        return self.jobs.setdefault(job_id, JobHistory())

    def pushed(self, job_id: str, *, known: bool) -> None:
        job = self.job(job_id)
        job.maybe_pushed = True
        if known:
            job.pushed = True
            self.acknowledged += 1

    def adding(self, key: str, jobs: int) -> None:
        """A request under an idempotency key is about to be sent, perhaps many times."""
        self.adding_keys[key] = jobs

    def added(self, key: str, ids: list[str]) -> None:
        """One of its repeats was answered with these ids."""
        known = self.added_keys.setdefault(key, ids)
        if known != ids or len(ids) != self.adding_keys[key]:
            self.fail("a repeat is answered alike", f"{key} was answered {known} and {ids}")
        self.acknowledged += 1

    def added_at_the_end(self, jobs: list[tuple[str, str]]) -> None:
        """All jobs, by id and by the key that their data names, after everything has healed."""
        found: dict[str, list[str]] = {}
        for job_id, key in jobs:
            found.setdefault(key, []).append(job_id.rpartition(":")[2])
        for key, ids in found.items():
            if len(ids) != self.adding_keys.get(key):
                self.fail("a repeated request is applied once", f"{key} added {ids}")
        for key, ids in self.added_keys.items():
            if sorted(found.get(key, [])) != sorted(ids):
                self.fail("nothing acknowledged is lost", f"{key} added {ids}, and {found.get(key)} are there")

    def delivered(self, job_id: str, fence: int) -> None:
        job = self.job(job_id)
        if not job.maybe_pushed:
            self.fail("no job from nowhere", f"{job_id} was delivered and never pushed")
        if job.acked and fence > job.acked_fence:
            self.fail("no resurrection", f"{job_id} was delivered again after its acknowledged completion")
        if fence in job.fences:
            self.fail("fencing tokens rise", f"{job_id} was delivered twice with fence {fence}")
        job.fences.append(fence)
        self.acknowledged += 1

    def held(self, job_id: str) -> None:
        """It was delivered under a lock that outlasts the run."""
        if len(self.job(job_id).fences) > 1:
            self.fail("a lock holds as long as was asked", f"{job_id} was given to a second worker")

    def delayed(self, job_id: str, delay_ms: int, now: float) -> None:
        """It is about to be pushed, for later."""
        self.job(job_id).delay_s, self.job(job_id).delayed_at = delay_ms / 1000, now

    def waits(self, job_id: str, now: float) -> None:
        """It was taken."""
        self.job(job_id).waits_since = now

    def due(self, job_id: str, now: float) -> None:
        """It was delivered."""
        job = self.job(job_id)
        waited = now - job.delayed_at
        if waited < job.delay_s / SLEW - EARLY_S:
            self.fail(
                "no delay is cut short", f"{job_id} was delivered {waited:.3f} s after a push for {job.delay_s} s"
            )

    def on_time(self, delayed: set[str], now: float) -> None:
        """These are delayed, after everything has healed."""
        for job_id in sorted(delayed):
            job = self.job(job_id)
            if job.waits_since is not None and now - job.waits_since > job.delay_s * SLEW + LATE_S:
                self.fail(
                    "timers fire on time",
                    f"{job_id} still waits for its {job.delay_s} s, {now - job.waits_since} s later",
                )

    def completing(self, job_id: str) -> list[int]:
        """An acknowledgement is about to be sent; returns the deliveries known by now."""
        self.job(job_id).maybe_acked = True
        return list(self.job(job_id).fences)

    def completed(self, job_id: str, fence: int, known: list[int]) -> None:
        """It was accepted with the lock of delivery `fence`, when those in `known` had been made before it was sent."""
        job = self.job(job_id)
        if job.acked:
            self.fail("completed once", f"{job_id} was completed twice")
        if max(known) > fence:
            self.fail("one valid lock a job", f"{job_id} was completed with fence {fence} after delivery {max(known)}")
        if any(later > fence for later in job.fences):
            self.fail("no resurrection", f"{job_id} was completed with fence {fence} and delivered as {job.fences}")
        job.acked, job.acked_fence = True, fence
        self.acknowledged += 1

    def read(self, job_id: str, state: str, *, pushed_before: bool, acked_before: bool) -> None:
        """A consistent read that began when the push, or the completion, had been acknowledged."""
        if acked_before and state != "completed":
            self.fail("linearizable reads", f"{job_id} reads as {state} after its completion was acknowledged")
        if pushed_before and state == "unknown":
            self.fail("linearizable reads", f"{job_id} is unknown to a read that began after its push was acknowledged")

    def at_the_end(self, states: dict[str, str]) -> None:
        """The state of every job on a node after everything has healed."""
        for job_id, job in self.jobs.items():
            state = states.get(job_id, "unknown")
            if job.pushed and state == "unknown":
                self.fail("nothing acknowledged is lost", f"{job_id} was acknowledged and is gone")
            if job.acked and state != "completed":
                self.fail("nothing acknowledged is lost", f"{job_id} was completed and is {state}")
            if state == "completed" and not job.maybe_acked:
                self.fail("no completion from nowhere", f"{job_id} is completed and nobody completed it")
        for job_id in states:
            if job_id not in self.jobs or not self.jobs[job_id].maybe_pushed:
                self.fail("no job from nowhere", f"{job_id} exists and was never pushed")
