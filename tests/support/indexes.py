"""What must hold between the records of a state and the tables that are made from them, worked out the slow way."""

from __future__ import annotations

from collections import Counter

from node.state import State
from node.state.job import ACTIVE, COMPLETED, DELAYED, FAILED, WAITING, WAITING_CHILDREN, Job, due_rank_of, rank_of


def check_indexes(state: State) -> None:
    """Compare every index, count and table of a state with its records."""
    assert sum(len(queue.jobs) for queue in state.queues.values()) == len(state.jobs)
    dependents: Counter[tuple[str, str]] = Counter()
    alarms = 0
    for name, queue in state.queues.items():
        jobs = list(queue.jobs.values())
        assert [job.seq for job in jobs] == sorted(job.seq for job in jobs)
        assert all(state.jobs[job.id] is job and job.queue == name for job in jobs)
        by_state: dict[str, list[Job]] = {}
        for job in jobs:
            by_state.setdefault(job.state, []).append(job)
            alarms += job.due > 0
        waiting = sorted(by_state.pop(WAITING, []), key=rank_of)
        delayed = sorted(by_state.pop(DELAYED, []), key=due_rank_of)
        active = by_state.pop(ACTIVE, [])
        assert list(queue.waiting()) == waiting and list(queue.delayed) == delayed
        assert list(queue.active.values()) == sorted(active, key=lambda job: job.fence)
        assert set(queue.waiting_children) == {job.id for job in by_state.get(WAITING_CHILDREN, [])}
        for job in by_state.pop(WAITING_CHILDREN, []):
            assert job.dependencies is not None and job.dependencies.remaining
            dependents.update((other, job.id) for other in job.dependencies.remaining)
        completed = sorted(by_state.pop(COMPLETED, []), key=lambda job: job.ending)
        assert list(queue.completed) == completed
        assert queue.completed_bytes == sum(len(job.data) + len(job.result or b"") for job in completed)
        assert list(queue.failed) == sorted(by_state.pop(FAILED, []), key=lambda job: job.ending)
        assert not by_state
        priorities = Counter(job.opts.priority for job in waiting + delayed)
        del priorities[0]
        assert queue.priorities == priorities
        assert queue.prioritized == sum(job.opts.priority > 0 for job in waiting)
        assert queue.lowered == sum(job.opts.priority < 0 for job in waiting)
        assert queue.parked == sum(len(group.parked) for group in queue.groups.values())
        running = Counter(job.group_id for job in active if job.group_id is not None)
        assert {key: group.active for key, group in queue.groups.items() if group.active} == running
        for key, holder in queue.unique.items():
            if key not in queue.throttled:
                # Without a time of its own a key belongs to an unfinished job.
                assert queue.jobs[holder].unique_key == key and not queue.jobs[holder].finished
        assert set(queue.throttled) <= set(queue.unique)
    held = sorted((until, name, key) for name, queue in state.queues.items() for key, until in queue.throttled.items())
    assert list(state.throttles) == held
    assert alarms == len(state.timers)
    assert dependents == Counter((other, job.id) for other, jobs in state.dependents.items() for job in jobs)
