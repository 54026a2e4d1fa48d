"""What must hold between the records of a state and the tables that are made from them, worked out the slow way."""

from __future__ import annotations

from collections import Counter

from quorumq.node.machine.state import State
from quorumq.node.machine.state.job import (
    ACTIVE,
    COMPLETED,
    DELAYED,
    FAILED,
    NO_CHILDREN,
    NO_NAMES,
    NO_VALUES,
    UNSUCCESSFUL,
    WAITING,
    WAITING_CHILDREN,
    Job,
    due_rank_of,
    rank_of,
    weight_of_failed,
)
from quorumq.node.machine.state.logs import weight_of as weight_of_logged
from quorumq.node.machine.state.webhook import weight_of


def check_indexes(state: State) -> None:
    """Compare every index, count and table of a state with its records."""
    assert not (NO_NAMES or NO_VALUES or NO_CHILDREN), "what jobs share that have none is somebody's"
    assert sum(len(queue.jobs) for queue in state.queues.values()) == len(state.jobs)
    dependents: Counter[tuple[str, str]] = Counter()
    alarms = 0
    for name, queue in state.queues.items():
        jobs = list(queue.jobs.values())
        assert [job.seq for job in jobs] == sorted(job.seq for job in jobs)
        assert all(state.jobs[job.id] is job and job.queue == name for job in jobs)
        assert sorted((job.called, job.id) for job in jobs if job.called is not None) == sorted(
            (called, job_id) for called, ids in queue.aside.items() for job_id in ids
        )
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
            remaining = job.dependencies.remaining if job.dependencies is not None else []
            # A client of the backend protocol may add a parent before any child is known.
            assert remaining or job.pending_children or job.id in state.failing or job.record is not None
            dependents.update((other, job.id) for other in remaining)
        check_flows(state, jobs)
        completed = sorted(by_state.pop(COMPLETED, []), key=lambda job: job.ending)
        assert list(queue.completed) == completed
        assert queue.completed_bytes == sum(len(job.data) + len(job.result or b"") for job in completed)
        failed = sorted(by_state.pop(FAILED, []), key=lambda job: job.ending)
        assert list(queue.failed) == failed
        assert queue.failed_bytes == sum(map(weight_of_failed, failed))
        assert not by_state
        priorities = Counter(job.opts.priority for job in waiting + delayed)
        del priorities[0]
        assert queue.priorities == priorities
        assert queue.shut_groups == sum(settings.is_shut for settings in queue.group_settings.values())
        assert queue.prioritized == sum(job.opts.priority > 0 for job in waiting)
        assert queue.lowered == sum(job.opts.priority < 0 for job in waiting)
        assert queue.parked == sum(len(group.parked) for group in queue.groups.values())
        running = Counter(job.group_id for job in active if job.group_id is not None)
        assert {key: group.active for key, group in queue.groups.items() if group.active} == running
        for key, group in queue.groups.items():
            settings = queue.settings_of(key)
            assert (group.limit, group.left) == (settings.limit, settings.left(queue.group_uses.get(key)))
            grouped = [job for job in waiting if job.group_id == key]
            room = max(min(group.limit - group.active, group.left), 0)
            assert (list(group.heads), list(group.parked)) == (grouped[:room], grouped[room:])
        ready = {job.id for job in waiting} - {job.id for group in queue.groups.values() for job in group.parked}
        assert {job.id for job in queue.ready} == ready
        for key, holder in queue.unique.items():
            if key not in queue.throttled:
                # Without a time of its own a key belongs to an unfinished job.
                assert queue.jobs[holder].unique_key == key and not queue.jobs[holder].finished
        assert set(queue.throttled) <= set(queue.unique)
    held = sorted((until, name, key) for name, queue in state.queues.items() for key, until in queue.throttled.items())
    assert list(state.throttles) == held
    uses = [(use.look_at, name, key) for name, queue in state.queues.items() for key, use in queue.group_uses.items()]
    assert state.group_limits.timers() == sorted(uses) and all(at for at, _, _ in uses)
    assert alarms == len(state.timers)
    assert dependents == Counter((other, job.id) for other, jobs in state.dependents.items() for job in jobs)
    check_beside(state)
    webhooks = state.webhooks
    for outbox in webhooks.outboxes.values():
        assert outbox.size == sum(map(weight_of, outbox.deliveries))
    assert webhooks.size == sum(outbox.size for outbox in webhooks.outboxes.values())
    assert set(webhooks.waiting) == {name for name, outbox in webhooks.outboxes.items() if outbox.deliveries}


def check_beside(state: State) -> None:
    """Hold against the jobs what is kept beside them: nothing of one that is gone, and weights as they are."""
    logs = state.logs
    assert logs.by_job.keys() <= state.jobs.keys() and logs.long.keys() <= logs.by_job.keys()
    assert logs.sizes == {job_id: sum(map(weight_of_logged, lines)) for job_id, lines in logs.by_job.items()}
    assert logs.size == sum(logs.sizes.values()) and logs.long_size == sum(logs.sizes[job_id] for job_id in logs.long)
    assert state.spent.by_job.keys() <= state.jobs.keys()
    assert state.failing.keys() <= state.jobs.keys()


def check_flows(state: State, jobs: list[Job]) -> None:
    """Hold what parents and children say of each other against each other."""
    for job in jobs:
        links = job.flow
        if links is None:
            continue
        ends = list(links.children.values())
        assert links.pending == ends.count(None)
        assert links.failed == sum(end is not None and end.how == UNSUCCESSFUL for end in ends)
        for child_id, end in links.children.items():
            if end is None:
                child = state.jobs[child_id]
                assert child.state != COMPLETED and child.flow is not None and child.flow.parent == job.id
        if links.parent is not None:
            # One that is gone is nobody's parent.
            parent = state.jobs[links.parent]
            assert parent.flow is not None and parent.queue == links.parent_queue
            assert job.id in parent.flow.children
