"""One simulated cluster: nodes that start, crash, pause and come back, the faults that befall them, and the clients that notice."""

from __future__ import annotations

import asyncio
import inspect
import random
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from types import CoroutineType
from typing import Any

import quorumq.cluster.seams
from quorumq.cluster import snapshots
from quorumq.cluster.config import ClusterConfig
from quorumq.cluster.engine import Engine
from quorumq.cluster.environment import NodeEnvironment
from quorumq.cluster.errors import ClusterError, LogDamaged, NodeRemoved
from quorumq.cluster.handshake import LinkListener
from quorumq.cluster.log import _MARK, read_record
from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operations.adding import AddJobs
from quorumq.node.machine.operations.job_reads import GetJobState
from quorumq.node.machine.operations.jobs import PushJobs
from quorumq.node.machine.operations.runs import AckJob, FailJob, FinishAndPull, Pulled, PullJobs
from quorumq.node.machine.operations.schedules import AddCron, DeleteCron
from quorumq.node.machine.refusals import Refusal
from quorumq.node.machine.state.job import DELAYED, JobSpec, Options
from quorumq.node.machine.state.schedule import Cron
from quorumq.node.node import IdempotencyKey, Node
from tests.simulation.checks import Checks, Violation
from tests.simulation.damage import DAMAGES, HELD_QUEUE, LATER_QUEUE
from tests.simulation.disk import SimDisk
from tests.simulation.families import Families
from tests.simulation.inside import Inside
from tests.simulation.loop import Process, StandstillError, VirtualLoop
from tests.simulation.network import Network, SimLinks
from tests.simulation.profiles import Profile
from tests.simulation.sessions import Sessions
from tests.simulation.strikes import STRIKES
from tests.simulation.workers import WORK, Workers

QUICK = Options(max_attempts=50, backoff=10)
CRON_QUEUE, CRON_MS = "cron", 900
CHAIN_QUEUE = "chain"
CONVERGES_S = 60
NOTICED_S = 30
"""Within so long a damaged replica knows that it is one: a step through the contents and a message each take a few seconds here."""
GIVEN_UP_S = 20.0
"""Longer than anything that a client began goes on."""
STABLE_S = 3.0
"""Without change for so long: longer than a client waits for its answer between two attempts of the same batch."""
EPOCH_MS = 1_700_000_000_000
YEAR_MS = 365 * 24 * 3_600_000
HELD_MS = 600_000
WATCH_S = 0.25
STEPS_DOWN_S = 4.5
"""A leader whose disk has hung for so long, while all else was well, leads no more."""
WELL_S, SLOW_S = 5.0, 0.1
"""After so long without a fault, and with disks that take no longer than this, a leader has seen to all that is due."""
STUCK_S = 8.0
"""After so long at the latest a leader that reaches a majority has committed something."""
KNOWN_S, TERMS_IN_A_STALL = 2.5, 2
"""After so long every node knows that its disk hangs; then so many elections may still be under way."""


def _taken(reply: Pulled) -> list[tuple[str, str | None, int]]:
    return [(job.id, job.token, job.fence) for job in reply.jobs]


class _SimWriter:
    """Writes a snapshot of this very moment; that it is done is known a while later."""

    fork_s = stall_s = 0.0
    hurried = False
    stalls = 0

    def __init__(self, world: World) -> None:
        self._world = world
        self._end: asyncio.TimerHandle | None = None

    def start(self, work: Callable[[Callable[[], None]], Any], done: Callable[[Exception | None], None]) -> None:
        error: Exception | None = None
        try:
            work(lambda: None)
        except Exception as caught:
            error = caught
        self._world.writing.add(self)
        self._end = self._world.loop.call_later(self._world.rng.uniform(0.01, 0.5), self._over, done, error)

    def _over(self, done: Callable[[Exception | None], None], error: Exception | None) -> None:
        self._world.writing.discard(self)
        done(error)

    def poll(self) -> None:
        pass

    def stop(self) -> None:
        self._world.writing.discard(self)
        if self._end is not None:
            self._end.cancel()


class _SimEnvironment(NodeEnvironment):
    tick_s = 0.05
    slice_s = 0.0

    def pause_s(self) -> float:
        return self._world.rng.choice((0.0, 0.001, 0.02))

    def __init__(self, world: World, host: Host) -> None:
        self._world = world
        self._host = host

    def loop(self) -> asyncio.AbstractEventLoop:
        return self._world.loop

    def disk(self, directory: Path) -> Any:
        disk = self._host.disks.get(directory.name)
        if disk is None:
            disk = self._host.disks[directory.name] = SimDisk(self._world.loop, self._world.rng)
        disk.latency = self._world.profile.disk_s
        disk.garbage = self._world.profile.garbage
        disk.attach(self._host.process)
        return disk

    def lock(self, directory: Path) -> None:
        return None

    def make_private(self, directory: Path) -> None:
        pass

    def links(self, config: ClusterConfig, listener: LinkListener) -> Any:
        return SimLinks(self._world.network, self._host.process, config, listener)

    def snapshot_writer(self) -> snapshots.SnapshotWriter:
        return _SimWriter(self._world)

    async def resolve(self, names: Iterable[str]) -> list[str]:
        return [f"{name}:7790" for name in self._world.up()]

    def wall_ms(self) -> int:
        host, now = self._host, self._world.loop.now
        return EPOCH_MS + int(now * 1000 + (now - host.drifts_since) * 1000 * host.drift) + host.clock_offset_ms

    def asleep_s(self) -> float:
        return self._host.asleep_s

    def random_bits(self, bits: int) -> int:
        return self._world.rng.getrandbits(bits)


class Host:
    """A machine: its disks and its clock stay when the process on it dies."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.disks: dict[str, SimDisk] = {}
        # Its wall clock: off by so much, and gaining so much a second.
        self.clock_offset_ms = 0
        self.drift = 0.0
        self.drifts_since = 0.0
        self.asleep_s = 0.0
        self.process = Process(name)
        self.engine: Engine | None = None
        self.node: Node | None = None
        self.starting = False
        self.wiped_at = float("-inf")
        self.shunned = False
        """Whether clients leave it alone, as where what it answers may be wrong."""
        self.damaged = False
        """Whether something of its log was changed or removed since its last start."""
        self.whole = False
        """Whether its disk holds all it promised: not before its first probation ended, nor after a wipe until the next ends."""

    @property
    def up(self) -> bool:
        return self.node is not None


class World:
    """Everything there is, for one seed."""

    def __init__(self, seed: int, nodes: int, profile: Profile, trace: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.profile = profile = profile.drawn(self.rng)
        random.seed(seed)
        self.loop = VirtualLoop()
        self.network = Network(self.loop, self.rng, profile.delay)
        # Whether the log's clock began with what the wall clocks say; and whose of these were ever wrong.
        self.true_clock = True
        self.wrong_clocks: set[str] = set()
        # Members that were removed and have not come again with an empty disk.
        self.removed: set[str] = set()
        self.checks = Checks()
        self.inside = Inside(self.checks)
        self.families = Families(self.checks)
        self.sessions = Sessions(self.checks)
        self.workers = Workers(self.checks)
        self.network.watched = self.inside.sent
        self.faults = 0
        self.founders = [f"n{i + 1}" for i in range(nodes)]
        # One machine more than members, for changes of the membership.
        self.hosts = {f"n{i + 1}": Host(f"n{i + 1}") for i in range(nodes + 1)}
        # Every third seed: nodes that know no list, and find each other by a name.
        self.discovers = seed % 3 == 2
        self._trace = trace
        self._jobs = 0
        self._crons_added = 0
        self._started_at = 0.0
        self._quiet = False
        self.writing: set[_SimWriter] = set()
        """Snapshots being written."""
        self.damaged = False
        """Whether a replica was damaged on purpose, so that digests may differ."""
        self._clients: list[asyncio.Task[None]] = []
        self._well_since = self.loop.now
        self._stands: dict[str, tuple[int, int, float]] = {}
        self._spawned: dict[asyncio.Task[None], Coroutine[Any, Any, None]] = {}
        quorumq.cluster.seams.Clock.now = self.loop.time

    def say(self, text: str) -> None:
        if self._trace is not None:
            self._trace(f"{self.loop.now - 1000:9.3f}  {text}")

    # -- nodes -------------------------------------------------------------------------------------------------------

    def config(self, name: str) -> ClusterConfig:
        profile = self.profile
        known = {name} if self.discovers else {*self.founders, name}
        return ClusterConfig(
            node_id=name,
            peers={host: f"{host}:7790" for host in known},
            discover=("all:7790",) if self.discovers else (),
            cluster_size=len(self.founders) if self.discovers else 0,
            listen="-:7790",
            data_dir=Path("/") / name / "data",
            entry_bytes_target=4000,
            append_bytes=profile.append_bytes,
            segment_bytes=profile.segment_bytes,
            snapshot_log_entries=profile.snapshot_entries,
            snapshot_interval_ms=100,
            tail_entries=profile.tail_entries,
            quorum_loss_ms=profile.quorum_loss_ms,
            unwritten_bytes_max=profile.unwritten_bytes_max,
        )

    async def start(self, name: str) -> None:
        """Start the process on a machine, unless it runs."""
        host = self.hosts[name]
        if host.up or host.starting:
            return
        host.starting = True
        process = host.process = Process(name)
        machine = Machine()
        engine = Engine(self.config(name), machine, _SimEnvironment(self, host))
        self._watch(name, engine)
        try:
            await self.loop.create_task(engine.start(), context=process.context())
        except OSError as error:
            self.say(f"{name} does not start: {error}")
            process.dead = True
            host.starting = False
            self.later(1.0, name)
            return
        except LogDamaged as error:
            if not host.damaged:
                raise Violation("a crash never damages", f"{name}: {error}") from error
            self.say(f"{name} does not start: {error}; its folder is emptied")
            for disk in host.disks.values():
                disk.wipe()
            process.dead = True
            host.starting = host.damaged = False
            self.later(1.0, name)
            return
        if host.damaged and engine._identity.held.whole:
            self.checks.fail("a folder that lost something is not trusted", name)
        host.damaged = False
        host.engine = engine
        held = engine._log
        self.checks.promised(name, held.term, held.voted_for, held.commit)
        self._watch_log(name, engine)
        node = Node(engine, machine)
        await self.loop.create_task(node.start(), context=process.context())
        host.node, host.starting = node, False
        self._started_at = self.loop.now
        self.say(f"{name} started at entry {engine.applied_index}, term {held.term}")

    def _watch(self, name: str, engine: Engine) -> None:
        replica = engine._replica
        apply, checks = replica.apply, self.checks

        def applied(index: int, command: bytes) -> None:
            self._applying = index
            checks.applied(name, index, command)
            self.inside.applied(name, engine, index)
            apply(index, command)
            if not self.damaged:
                self.inside.digest(name, engine.machine, index)

        replica.apply = applied  # type: ignore[method-assign]
        settled = replica._settled

        def once(batch: Any, outcome: Any) -> None:
            checks.settled(name, batch.key, self._applying)
            self.inside.answers(name, batch.origin, self._applying)
            settled(batch, outcome)

        replica._settled = once

        def role(leads: bool) -> None:
            if leads:
                checks.leads(name, engine._raft.term)
                self.inside.leads(name, engine)

        engine.on_role_change(role)

    def _watch_log(self, name: str, engine: Engine) -> None:
        self.inside.watch(name, engine)
        self.inside.watch_clock(name, engine, self.loop.time, steady=self.profile.steady, true_ms=self._true_ms)
        journal = engine._log
        durable = journal.on_durable

        def seen() -> None:
            durable()
            if journal.durable == journal.appended:
                self.checks.promised(name, journal.term, journal.voted_for, journal.commit)

        journal.on_durable = seen

    def _true_ms(self) -> int:
        """What a majority's wall clocks say at time 0; 0 when nobody can know.

        As long as one machine's was wrong at most: what another one says is believed for three seconds, so that a wrong clock which moves
        from one machine to the next is two for so long.
        """
        known = self.true_clock and len(self.wrong_clocks) <= 1 and "all_clocks" not in self.profile.weights
        return EPOCH_MS if known else 0

    def crash(self, name: str, *, wipe: bool = False) -> None:
        host = self.hosts[name]
        if not host.up:
            return
        assert host.engine is not None
        error = host.engine.failed.exception() if host.engine.failed.done() else None
        if error is not None and not isinstance(error, NodeRemoved):
            # It stopped by itself before it crashed, and nobody has looked since.
            violation = Violation("no node stops by itself", f"{name}: {type(error).__name__}: {error}")
            self.checks.first_violation = self.checks.first_violation or violation
        host.process.dead = True
        host.engine._driver.stopped = True
        host.node = host.engine = None
        self.network.leave(name)
        # The work under way on the log may get as far as its note beside it: the folder of both is last.
        for key in sorted(host.disks, key=lambda each: (each == "data", each)):
            host.disks[key].crash(self.rng)
            if wipe:
                host.disks[key].wipe()
        if wipe:
            self.checks.wiped(name)
        self.say(f"{name} {'lost its disk' if wipe else 'crashed'}")

    def retire(self, name: str) -> None:
        """A machine that is no member any more: its process ends and its disk is emptied."""
        self.crash(name, wipe=True)
        self.hosts[name].whole = True  # nobody counts on it

    def members(self) -> list[str]:
        """The members as the leader with the highest term sees them, or the node that has applied most."""
        engines = self.engines()
        if not engines:
            return []
        best = max(engines, key=lambda engine: (engine.is_leader, engine._raft.term, engine.applied_index))
        return sorted(best._raft.membership.seats) or self.founders

    def engines(self) -> list[Engine]:
        return [host.engine for host in self.hosts.values() if host.engine is not None and host.node is not None]

    def up(self) -> list[str]:
        return [name for name, host in self.hosts.items() if host.up]

    def _asked(self) -> list[str]:
        return [name for name in self.up() if not self.hosts[name].shunned]

    # -- clients -----------------------------------------------------------------------------------------------------

    async def _client(self, number: int) -> None:
        rng = random.Random(self.seed * 1000 + number)
        while not self._quiet:
            await asyncio.sleep(rng.expovariate(self.profile.rate / self.profile.clients))
            if rng.random() < 0.1 and not self._quiet:
                await self._add(rng)
                continue
            names = self._asked()
            if not names or self._quiet:
                continue
            host = self.hosts[rng.choice(names)]
            assert host.node is not None
            work = rng.choice(self._actions)(self, host.node, rng)
            task = self.loop.create_task(work, context=host.process.context())
            process, patience = host.process, 60
            while not task.done() and not process.dead and patience:
                await asyncio.wait({task}, timeout=0.4)
                patience -= 1
            if task.done() and not isinstance(task.exception(), ClusterError | Refusal | None):
                task.result()

    async def _add_cron(self) -> None:
        """One cron for the whole run; the same request again and again until it is known to have been taken."""
        cron = AddCron("every", CRON_QUEUE, JobSpec("-", b"1"), every_ms=CRON_MS, prevent_overlap=False)
        while not self._quiet:
            await asyncio.sleep(0.5)
            for host in self.hosts.values():
                if host.node is not None and host.engine is not None and host.engine.is_leader:
                    self._crons_added += 1
                    adding = self.loop.create_task(host.node.submit(cron), context=host.process.context())
                    # One that is given up may still end, in either way.
                    adding.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
                    await asyncio.wait({adding}, timeout=5.0)
                    if adding.done() and adding.exception() is None:
                        return

    async def _remove_cron(self) -> None:
        """Let the log come to rest: what the cron did until then stays, and is checked before it goes."""
        while True:
            await asyncio.sleep(0.5)
            leader = next(
                (host for host in self.hosts.values() if host.engine is not None and host.engine.is_leader), None
            )
            if leader is None or leader.node is None or leader.engine is None:
                continue
            machine = leader.engine.machine
            assert isinstance(machine, Machine)
            cron = machine.state.schedule.crons.get("every")
            if cron is None:
                return
            await self._beats(leader.engine, cron)
            fired = sum(job.queue == CRON_QUEUE for job in machine.state.jobs.values())
            if self._crons_added == 1 and cron.executions != fired:
                self.checks.first_violation = Violation(
                    "a cron fires once per due time", f"{cron.executions} executions made {fired} jobs"
                )
            removing = self.loop.create_task(leader.node.submit(DeleteCron("every")), context=leader.process.context())
            await asyncio.wait({removing}, timeout=5.0)
            if removing.done():
                removing.exception()

    async def _beats(self, leader: Engine, cron: Cron) -> None:
        """Whatever the clocks did: as long as one node leads, a cron fires every time."""
        machine = leader.machine
        assert isinstance(machine, Machine)
        ends = self.loop.now + 10.0
        # A leader that follows a time without one makes up for what was missed, each time by itself if it is not long past. Before it
        # knows the log's clock, that of the last entry stands still, and nothing seems to be missing.
        while self.loop.now < ends and (not leader._clock.settled or leader.now_ms() - cron.next_due > CRON_MS):
            await asyncio.sleep(0.1)
        fired, waited_s = cron.executions, 4 * CRON_MS / 1000
        await asyncio.sleep(waited_s)
        fired = cron.executions - fired
        if leader.is_leader and machine.state.schedule.crons.get("every") is cron and not 3 <= fired <= 5:
            self.checks.first_violation = self.checks.first_violation or Violation(
                "timers fire on time", f"a cron of {CRON_MS} ms fired {fired} times in {waited_s} s"
            )

    async def push(self, node: Node, rng: random.Random) -> None:
        ids = []
        for _ in range(rng.choice((1, 1, 1, 3, 10))):
            self._jobs += 1
            ids.append(f"j{self._jobs}")
            self.checks.pushed(ids[-1], known=False)
        await node.submit(PushJobs("q", [JobSpec(job, b'{"n":1}', QUICK) for job in ids]))
        for job in ids:
            self.checks.pushed(job, known=True)

    async def _work(self, node: Node, rng: random.Random) -> None:
        seed = f"{rng.getrandbits(40):x}"
        pull = PullJobs("q", rng.choice((1, 3)), "w", lock_ms=rng.choice((300, 3000)), token_seed=seed)
        taken = await node.pull(pull, _taken, wait_ms=rng.choice((0, 500)))
        for job_id, _, fence in taken:
            self.checks.delivered(job_id, fence)
        await asyncio.sleep(rng.choice((0.0, 0.0, 0.1, 1.0)))
        for job_id, token, fence in taken:
            if rng.random() < 0.1:
                await node.submit(FailJob(job_id, token, "failed"))
                continue
            known = self.checks.completing(job_id)
            await node.submit(AckJob(job_id, token))
            self.checks.completed(job_id, fence, known)

    async def _chain(self, node: Node, rng: random.Random) -> None:
        """Take a job of the other dialect's queue, end it and take the next in one step, and so on."""
        pull = PullJobs(CHAIN_QUEUE, 1, "w", rng.choice((300, 3000)), token=f"{rng.getrandbits(40):x}")
        taken = await node.pull(pull, _taken, wait_ms=rng.choice((0, 500)))
        for _ in range(4):
            for job_id, _, fence in taken:
                self.checks.pushed(job_id, known=False)
                self.checks.delivered(job_id, fence)
            if not taken:
                return
            await asyncio.sleep(rng.choice((0.0, 0.1, 0.5)))
            (job_id, token, fence) = taken[0]
            known = self.checks.completing(job_id)
            taken = await node.submit(
                FinishAndPull(AckJob(job_id, token), pull), lambda finished: _taken(finished.next)
            )
            self.checks.completed(job_id, fence, known)

    async def _add(self, rng: random.Random) -> None:
        """Add jobs under one idempotency key, at one node after another until it is known to have happened."""
        self._jobs += 1
        key = f"k{self._jobs}"
        jobs = [JobSpec("", b'"%s"' % key.encode(), QUICK)] * rng.choice((1, 1, 4))
        self.checks.adding(key, len(jobs))
        answers = 0
        for _ in range(8):
            names = self._asked()
            if names:
                host = self.hosts[rng.choice(names)]
                assert host.node is not None
                adding = host.node.submit(
                    AddJobs(CHAIN_QUEUE, jobs),
                    lambda reply: list(reply.ids),
                    once=IdempotencyKey(key, b"same", "", key),
                )
                task = self.loop.create_task(adding, context=host.process.context())
                # An attempt that is given up may still end, in either way, while the next one is under way.
                task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
                await asyncio.wait({task}, timeout=rng.choice((0.05, 0.5, 3.0)))
                if task.done() and task.exception() is None:
                    self.checks.added(key, task.result())
                    answers += 1
                    if answers == 2 or rng.random() < 0.7:
                        return
                elif task.done() and not isinstance(task.exception(), ClusterError):
                    task.result()
            await asyncio.sleep(rng.choice((0.0, 0.2)))

    async def read(self, node: Node, rng: random.Random) -> None:
        known = [job_id for job_id, job in self.checks.jobs.items() if job.pushed]
        if known:
            job_id = rng.choice(known[-30:])
            job = self.checks.jobs[job_id]
            acked = job.acked
            state = await node.ask(GetJobState(job_id))
            self.checks.read(job_id, state, pushed_before=True, acked_before=acked)

    async def _lock(self, node: Node, rng: random.Random) -> None:
        """Add a job and take one, for longer than the run lasts; nobody else may get it."""
        self._jobs += 1
        job = f"j{self._jobs}"
        self.checks.pushed(job, known=False)
        await node.submit(PushJobs(HELD_QUEUE, [JobSpec(job, b"1", QUICK)]))
        self.checks.pushed(job, known=True)
        pull = PullJobs(HELD_QUEUE, 1, "w", lock_ms=HELD_MS, token_seed=f"{rng.getrandbits(40):x}")
        for job_id, _, fence in await node.pull(pull, _taken):
            self.checks.delivered(job_id, fence)
            self.checks.held(job_id)

    async def _delay(self, node: Node, rng: random.Random) -> None:
        """Add a job for later, and take one whose time has come."""
        self._jobs += 1
        job, delay_ms = f"j{self._jobs}", rng.choice((500, 2000, 5000, 1_800_000))
        self.checks.pushed(job, known=False)
        self.checks.delayed(job, delay_ms, self.loop.now)
        spec = JobSpec(job, b"1", Options(max_attempts=50, delay_ms=delay_ms))
        await node.submit(PushJobs(LATER_QUEUE, [spec]))
        self.checks.pushed(job, known=True)
        self.checks.waits(job, self.loop.now)
        pull = PullJobs(LATER_QUEUE, 3, "w", lock_ms=HELD_MS, token_seed=f"{rng.getrandbits(40):x}")
        for job_id, _, fence in await node.pull(pull, _taken, wait_ms=rng.choice((0, 500))):
            self.checks.delivered(job_id, fence)
            self.checks.due(job_id, self.loop.now)

    async def _flow(self, node: Node, rng: random.Random) -> None:
        await self.families.add(node, rng)

    async def _flow_work(self, node: Node, rng: random.Random) -> None:
        await self.families.work(node, rng)

    _actions = (
        *(push, push, push, _work, _work, _work, _work, read, read, _chain, _chain, _lock, _delay),
        *(_flow, _flow_work, _flow_work),
    )

    # -- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Live through the seed's faults, heal, and check. Raises Violation."""
        watching = self.loop.create_task(self._watch_inside())
        try:
            self.loop.run_until_complete(self._live())
            self._check_alive()
        except StandstillError as error:
            raise Violation("time goes on", str(error)) from None
        finally:
            watching.cancel()
            for task in asyncio.all_tasks(self.loop):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
            self._close_what_never_began()
            quorumq.cluster.seams.Clock.now = time.monotonic
            self.loop.close()

    def _close_what_never_began(self) -> None:
        """A process that died at the instant in which it was given something never took it up: nobody awaits that any more."""
        for task, work in self._spawned.items():
            for routine in (task.get_coro(), work):
                if isinstance(routine, CoroutineType) and inspect.getcoroutinestate(routine) == inspect.CORO_CREATED:
                    routine.close()

    async def _live(self) -> None:
        for name in self.founders:
            await self.start(name)
        self._clients = [self.loop.create_task(self._add_cron()), self.loop.create_task(self._watch_disks())]
        self._clients += [self.loop.create_task(self._client(number)) for number in range(self.profile.clients)]
        for number in range(self.profile.sessions):
            self._clients.append(self.loop.create_task(self.sessions.client(self, number)))
            self._clients.append(self.loop.create_task(self.sessions.reader(self, number)))
            self._clients.append(self.loop.create_task(self.workers.work(self, number)))
        until = self.loop.now + self.profile.seconds
        while self.loop.now < until:
            await asyncio.sleep(self.rng.expovariate(self.profile.faults_a_second))
            await self._fault()
            self._check_alive()
        await self._heal()

    def _check_alive(self) -> None:
        if self.checks.first_violation is not None:
            raise self.checks.first_violation
        for name, host in self.hosts.items():
            if host.engine is not None and host.engine.failed.done() and host.up:
                error = host.engine.failed.exception()
                if isinstance(error, NodeRemoved) and name not in self.members():
                    self.say(f"{name} was told that it is removed")
                    self.retire(name)
                    continue
                if isinstance(error, Violation):
                    raise error
                raise Violation("no node stops by itself", f"{name}: {type(error).__name__}: {error}")
            if host.engine is not None and not self.damaged and (others := host.engine._agreement.differing):
                raise Violation("replicas are identical", f"{name} differs from {', '.join(others)}")
        for task in self._clients:
            if task.done() and task.exception() is not None:
                raise task.exception()  # type: ignore[misc]
        if self.loop.trouble:
            raise Violation("no exception gets lost", self.loop.trouble[0])

    async def _fault(self) -> None:
        name, fault = self.rng.choice(sorted(self.hosts)), self.profile.pick(self.rng)
        self.faults += 1
        if fault in STRIKES:
            await STRIKES[fault](self)
        else:
            await getattr(self, f"_fault_{fault}")(name)

    async def _fault_crash(self, name: str) -> None:
        if not self.hosts[name].up:
            return
        disk = self.hosts[name].disks["log"]
        for _ in range(self.rng.choice((0, 300))):
            if disk.busy:
                break  # in the middle of a write a crash shows most
            await asyncio.sleep(0.001)
        self.crash(name)
        self.later(self.rng.uniform(0.05, 4.0), name)

    def later(self, after_s: float, name: str) -> None:
        self.loop.call_later(after_s, lambda: self.loop.create_task(self.start_checked(name)))

    async def start_checked(self, name: str) -> None:
        if not self.hosts[name].disks["log"].files and name not in (self.members() or self.founders):
            return  # it was retired meanwhile
        try:
            await self.start(name)
        except Violation as violation:
            self.checks.first_violation = self.checks.first_violation or violation

    async def _fault_crash_all(self, name: str) -> None:
        for each in self.up():
            self.crash(each)
            self.later(self.rng.uniform(0.05, 3.0), each)

    def may_lose(self, name: str) -> bool:
        """Whether `name` may lose what it promised now."""
        # Two disks lost before the first node is whole again are beyond what is promised; so is one of two voters', and
        # a member that is away may hold a change of the membership that leaves two.
        members = self.members()
        if not all(self.hosts[each].up for each in members):
            return False
        enough = len(members) > 2 and all(len(engine._raft.membership.voters) > 2 for engine in self.engines())
        return enough and name in members and all(self._whole(self.hosts[each]) for each in members)

    def has_lost(self, name: str) -> None:
        self.checks.wiped(name)
        self.inside.lost(name)
        self.hosts[name].whole = False
        self.hosts[name].wiped_at = self.loop.now

    async def _fault_wipe(self, name: str) -> None:
        if self.may_lose(name):
            self.crash(name, wipe=True)
            self.has_lost(name)
            self.later(self.rng.uniform(0.05, 2.0), name)

    async def _fault_damage(self, name: str) -> None:
        """The memory of one replica goes wrong; it must find out, and comes back with an empty disk."""
        host, engine = self.hosts[name], self.hosts[name].engine
        members = self.members()
        if name not in members or not all(self._whole(self.hosts[each]) for each in members) or len(members) < 3:
            return
        host.shunned = True
        await asyncio.sleep(GIVEN_UP_S)
        assert engine is not None and isinstance(engine.machine, Machine)
        kind = self.rng.choice(sorted(DAMAGES))
        try:
            DAMAGES[kind](engine.machine.state)
        except (KeyError, StopIteration):
            host.shunned = False  # no job waits at the moment
            return
        self.damaged = True
        self.say(f"{name}: its {kind} is damaged")
        until = self.loop.now + NOTICED_S
        while not engine.status().apart:
            if self.loop.now > until:
                raise Violation("a damaged replica is noticed", f"{name}: its {kind} was damaged {NOTICED_S} s ago")
            self._check_alive()
            await asyncio.sleep(0.1)
        self.say(f"{name} knows: {engine.status().apart}")
        self.crash(name, wipe=True)
        host.whole = False
        await self.start(name)
        while not self._whole(host):
            self._check_alive()
            await asyncio.sleep(0.1)
        host.shunned = False

    async def _fault_forget(self, name: str) -> None:
        """One that helped to depose the leader loses its disk, and reaches only that leader, which does not know yet."""
        old = next((engine.node_id for engine in self.engines() if engine.is_leader), "")
        others = [each for each in self.members() if each != old]
        if not old or not others or not self.may_lose(others[0]):
            return
        for each in others:
            self.network.reset(old, each)
            self.network.reset(each, old)
            self.apart(old, each)
        self.say(f"{old} is cut off by resets")
        for _ in range(40):
            await asyncio.sleep(0.02)
            new = next((engine.node_id for engine in self.engines() if engine.is_leader and engine.node_id != old), "")
            if new:
                break
        third = next((each for each in others if each != new), "")
        if not new or not third:
            return
        await asyncio.sleep(self.rng.uniform(0.0, 0.3))
        if self.may_lose(third):
            self.apart(new, third)
            self.crash(third, wipe=True)
            self.has_lost(third)
            self.heal_pair(old, third)
            await self.start(third)

    def apart(self, one: str, other: str, heals_s: float | None = None) -> None:
        """Nothing passes between two any more, for so long."""
        self.network.cut(one, other)
        self.network.cut(other, one)
        self.loop.call_later(self.rng.uniform(1.0, 4.0) if heals_s is None else heals_s, self.heal_pair, one, other)

    async def _fault_flip(self, name: str) -> None:
        """One bit of what was written last, and synced, is another one after a power cut."""
        engine = self.hosts[name].engine
        if engine is None or not self.may_lose(name) or not engine._log.end[1]:
            return
        number, size = engine._log.end
        disk, segment = self.hosts[name].disks["log"], f"{number:012d}.log"
        data, begins, offset = disk.read(segment)[:size], 0, 0
        while offset < size:
            found = read_record(data, offset)
            assert found is not None
            if found[0] == _MARK:
                begins = offset
            offset = found[2]
        self.crash(name)
        position = self.rng.randrange(begins, size)
        flipped = bytearray(disk.files[segment].durable)
        flipped[position] ^= 1 << self.rng.randrange(8)
        disk.files[segment].durable = bytes(flipped)
        self.say(f"a bit of {segment} of {name} is another one, at {position} of {size}")
        self.has_lost(name)
        self.hosts[name].damaged = True
        self.later(self.rng.uniform(0.05, 2.0), name)

    async def _fault_lose_log(self, name: str) -> None:
        """The process ends, and somebody deletes or cuts its log, and keeps the rest."""
        engine = self.hosts[name].engine
        if engine is None or not self.may_lose(name) or not engine._log.end[1]:
            return
        number, size = engine._log.end
        disks, segment = self.hosts[name].disks, f"{number:012d}.log"
        for disk in disks.values():
            disk.keep()
        self.crash(name)
        how = self.rng.choice(
            ("its log", "its log and its snapshots", "the end of its log", "the last segment of its log")
        )
        if how == "the end of its log":
            disks["log"].truncate(segment, size // 4)
        elif how == "the last segment of its log":
            disks["log"].remove(segment)
        else:
            disks["log"].wipe()
        if how == "its log and its snapshots":
            disks["snapshots"].wipe()
        self.say(f"{name} lost {how}")
        self.has_lost(name)
        self.hosts[name].damaged = True
        self.later(self.rng.uniform(0.05, 2.0), name)

    @staticmethod
    def _whole(host: Host) -> bool:
        if host.engine is not None and host.up and host.engine._identity.held.whole:
            host.whole = True
        return host.whole

    async def _fault_pause(self, name: str) -> None:
        host = self.hosts[name]
        if host.up and not host.process.paused:
            process = host.process
            process.paused = True
            seconds = self.rng.choice((0.2, 1.0, 3.0, 6.0))
            self.say(f"{name} paused for {seconds} s")
            self.loop.call_later(seconds, self._resume, process)

    def _resume(self, process: Process) -> None:
        # What it knows of its disk is from before, as if it had started just now.
        self._started_at = self.loop.now
        process.resume(self.loop)

    async def _fault_reset(self, name: str) -> None:
        peer = self.rng.choice([other for other in sorted(self.hosts) if other != name])
        self.network.reset(name, peer)
        self.network.reset(peer, name)
        self.say(f"connections {name} {peer} reset")

    async def _fault_redial(self, name: str) -> None:
        peer = self.rng.choice([other for other in sorted(self.hosts) if other != name])
        links = self.network.nodes.get(name)
        if links is not None:
            links.process.run(links.dial, peer)

    async def _fault_cut(self, name: str) -> None:
        peer = self.rng.choice([other for other in sorted(self.hosts) if other != name])
        self.network.cut(name, peer)
        both = self.rng.random() < 0.5
        if both:
            self.network.cut(peer, name)
        self.say(f"cut {name} {'<->' if both else '->'} {peer}")
        self.loop.call_later(self.rng.uniform(0.2, 8.0), self.heal_pair, name, peer)

    def heal_pair(self, name: str, peer: str) -> None:
        self.network.heal(name, peer)
        self.network.heal(peer, name)

    async def _fault_isolate(self, name: str) -> None:
        side = [other for other in sorted(self.hosts) if other != name and self.rng.random() < 0.3] + [name]
        for inside in side:
            for outside in sorted(self.hosts):
                if outside not in side:
                    self.network.cut(inside, outside)
                    self.network.cut(outside, inside)
                    self.loop.call_later(self.rng.uniform(1, 8.0), self.heal_pair, inside, outside)
        self.say(f"partition: {', '.join(side)} on one side")

    async def _fault_clock(self, name: str) -> None:
        """A wall clock steps, or begins to drift; those of a majority of any members that there may be stay right."""
        wrong = [other for other, host in self.hosts.items() if other != name and (host.clock_offset_ms or host.drift)]
        for other in wrong[: len(wrong) + 1 - (len(self.founders) - 1) // 2]:
            self.set_clock(other, 0, 0.0)
        steps_ms = (-YEAR_MS, -3_600_000, -5000, 0, 5000, 60_000, 3_600_000, 3_600_000, YEAR_MS)
        self.set_clock(name, self.rng.choice(steps_ms), self.rng.choice((0.0, 0.0, -0.01, 0.01, 0.2)))

    async def _fault_all_clocks(self, name: str) -> None:
        """All wall clocks step together, as those of guests on one host: the log's clock follows, in its own time."""
        offset_ms = self.rng.choice((-YEAR_MS, -3_600_000, -5000, 5000, 3_600_000, YEAR_MS))
        for each in self.hosts:
            self.set_clock(each, offset_ms, 0.0)

    def set_clock(self, name: str, offset_ms: int, drift: float) -> None:
        host = self.hosts[name]
        host.clock_offset_ms, host.drift, host.drifts_since = offset_ms, drift, self.loop.now
        if offset_ms or drift:
            self.wrong_clocks.add(name)
        self.say(f"clock of {name} is {offset_ms} ms off, and gains {drift:.0%}")

    async def _fault_suspend(self, name: str) -> None:
        """The machine sleeps, and knows afterwards for how long."""
        host = self.hosts[name]
        if host.up and not host.process.paused:
            process, seconds = host.process, self.rng.choice((1.5, 5.0))
            process.paused = True
            self.say(f"{name} sleeps for {seconds} s")

            def wake() -> None:
                host.asleep_s += seconds
                self._resume(process)

            self.loop.call_later(seconds, wake)

    async def _fault_hung_disk(self, name: str) -> None:
        """It takes work and does none, without an error; sometimes all of them, as on one shared storage, or all but one."""
        others = sorted(set(self.hosts) - {name})
        names = self.rng.choice(([name], [name], [name], others, [name, *others]))
        seconds = self.rng.choice((0.5, 3.0, 8.0))
        for each in names:
            for disk in self.hosts[each].disks.values():
                disk.hang()
                self.loop.call_later(seconds, disk.answer)
        self.say(f"disks of {', '.join(names)} hang for {seconds} s")

    def spawn(self, host: Host, work: Coroutine[Any, Any, None]) -> None:
        """Have the process on a machine do something that nobody waits for; errors of the cluster are its to have."""

        async def tried() -> None:
            try:
                await work
            except (ClusterError, Refusal):
                pass

        task = self.loop.create_task(tried(), context=host.process.context())
        self._spawned[task] = work
        task.add_done_callback(self._spawned.pop)

    async def _watch_inside(self) -> None:
        """What holds at every step, looked at from outside of the steps; and when all is well, that nothing is late."""
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                for engine in self.engines():
                    self.inside.look(engine.node_id, engine)
                    self._look_for_progress(engine)
                leader = next((each for each in self.engines() if each._raft.committed_own_term), None)
                if leader is None or not self._all_well(leader):
                    self._well_since = self.loop.now
                elif self.loop.now - self._well_since > WELL_S:
                    self.inside.overdue(leader)
            except Violation:
                return  # it is the first one, and whoever looks next raises it

    def _look_for_progress(self, engine: Engine) -> None:
        """A leader that has reached a majority all the time, and holds entries that are not committed, commits."""
        raft, name = engine._raft, engine.node_id
        stands = engine.is_leader and raft.journal.last_index > raft.commit_index
        well = [each for each in raft.membership.voters if self._can_help(name, each)]
        if not stands or len(well) < raft.quorum:
            self._stands.pop(name, None)
            return
        term, index, since = self._stands.get(name, (0, 0, 0.0))
        if (term, index) != (raft.term, raft.commit_index):
            self._stands[name] = raft.term, raft.commit_index, self.loop.now
        elif self.loop.now - since > STUCK_S:
            self.checks.fail(
                "a leader with a majority goes on",
                f"{name} has committed nothing after {index} for {STUCK_S} s, and reaches {', '.join(well)}",
            )

    def _can_help(self, leader: str, name: str) -> bool:
        host, cuts = self.hosts[name], self.network.cuts
        return (
            host.engine is not None
            and host.up
            and not host.process.paused
            and host.engine._raft.may_vote
            and (leader, name) not in cuts
            and (name, leader) not in cuts
            and host.disks["log"].latency[1] <= SLOW_S
            and not any(disk.hung or disk.fail_writes or disk.fail_syncs for disk in host.disks.values())
        )

    def _all_well(self, leader: Engine) -> bool:
        """Whether nothing is in the way of a leader."""
        members = [self.hosts[name] for name in leader._raft.membership.seats]
        return not self.network.cuts and all(
            host.up
            and not host.process.paused
            and not any(disk.hung or disk.fail_writes or disk.fail_syncs for disk in host.disks.values())
            and host.disks["log"].latency[1] <= SLOW_S
            for host in members
        )

    async def _watch_disks(self) -> None:
        """Nobody leads for long whose disk hangs while all else is well, and where most disks hang nobody tries to."""
        since: dict[str, float] = {}
        hung_since, known = self.loop.now, 0
        while not self._quiet:
            await asyncio.sleep(WATCH_S)
            leaders = [engine for engine in self.engines() if engine.is_leader and engine._log.under_way]
            stuck = {
                engine.node_id
                for engine in leaders
                if self.hosts[engine.node_id].disks["log"].hung and self._all_well_but(engine)
            }
            since = {name: since.get(name, self.loop.now) for name in sorted(stuck)}
            hung = [name for name in self.members() if self.hosts[name].disks["log"].hung]
            term = max((engine._raft.term for engine in self.engines()), default=0)
            if 2 * len(hung) <= len(self.members()):
                hung_since = self.loop.now
            if self.loop.now - max(hung_since, self._started_at) < KNOWN_S:
                known = term
            elif term - known > TERMS_IN_A_STALL:
                self.checks.first_violation = self.checks.first_violation or Violation(
                    "no storm of elections", f"{term - known} terms while it was known that most disks hang"
                )
            for name, began in since.items():
                if self.loop.now - began > STEPS_DOWN_S:
                    self.checks.first_violation = self.checks.first_violation or Violation(
                        "a hung disk does not lead", f"{name} leads, and its disk has hung for {STEPS_DOWN_S} s"
                    )

    def _all_well_but(self, leader: Engine) -> bool:
        """Whether the others could go on at once without this leader."""
        others = [self.hosts[name] for name in leader._raft.peers]
        return (
            bool(others)
            and not self.network.cuts
            and len(others) + 1 == len(leader._raft.membership.seats)
            and len(others) >= leader._raft.quorum
            and all(
                host.engine is not None
                and host.up
                and not host.process.paused
                and host.engine._raft.may_vote
                and not any(disk.hung or disk.fail_writes or disk.fail_syncs for disk in host.disks.values())
                for host in others
            )
        )

    async def _fault_slow_disk(self, name: str) -> None:
        for disk in self.hosts[name].disks.values():
            before = disk.latency
            disk.latency = (0.01, self.rng.choice((0.05, 0.3)))
            self.loop.call_later(self.rng.uniform(0.5, 4.0), setattr, disk, "latency", before)
        self.say(f"disk of {name} is slow")

    async def _fault_full_disk(self, name: str) -> None:
        # A node's folders are on one file system: they fail, and are well again, together.
        code, seconds = self.rng.choice((28, 5)), self.rng.uniform(0.5, 4.0)
        for disk in self.hosts[name].disks.values():
            disk.fail_writes = code
            self.loop.call_later(seconds, setattr, disk, "fail_writes", None)
        self.say(f"disk of {name} fails with errno {code}")

    async def _fault_failing_sync(self, name: str) -> None:
        seconds = self.rng.uniform(0.05, 2.0)
        for disk in self.hosts[name].disks.values():
            disk.fail_syncs = 5
            self.loop.call_later(seconds, setattr, disk, "fail_syncs", None)
        self.say(f"syncs of {name} fail")

    async def _fault_transfer(self, name: str) -> None:
        for host in self.hosts.values():
            if host.engine is not None and host.up and host.engine.is_leader:
                self.loop.create_task(host.engine.transfer_leadership(), context=host.process.context())

    async def _fault_members(self, name: str) -> None:
        leader = next((engine for engine in self.engines() if engine.is_leader), None)
        if leader is None:
            return
        membership = leader._raft.membership
        outside = [host for host in sorted(self.hosts) if host not in membership.seats and not self.hosts[host].up]
        learners = [member for member, seat in sorted(membership.seats.items()) if not seat.voter]
        if learners:
            action, target = ("promote", learners[0]) if self.rng.random() < 0.8 else ("remove", learners[0])
        elif outside and len(membership.seats) <= len(self.founders):
            action, target = "add", outside[0]
            await self.start_empty(target)
        elif len(membership.seats) < 3 or any(self.loop.now - host.wiped_at < 0.5 for host in self.hosts.values()):
            # A disk that was lost just now, and a removal before the leader can know of it: two losses at once.
            return
        else:
            action, target = "remove", self.rng.choice(sorted(set(membership.seats) - {leader.node_id}))
        by = self.rng.choice(self.engines())
        self.say(f"{action} {target}, asked of {by.node_id}")
        self.loop.create_task(self.change(by, action, target), context=self.hosts[by.node_id].process.context())

    async def snapshot(self, engine: Engine) -> None:
        """Somebody asks a node for an image."""
        await engine.snapshot(5.0)

    async def start_empty(self, name: str) -> None:
        """One that was removed and never heard of it comes again as the documents say: with an empty disk."""
        self.hosts[name].whole = False
        self.removed.discard(name)
        for disk in self.hosts[name].disks.values():
            disk.wipe()
        self.checks.wiped(name)
        await self.start(name)

    async def change(self, by: Engine, action: str, target: str) -> None:
        if action == "add" and target in self.removed:
            # It was told so, or will be, and has to come with an empty disk.
            return
        try:
            await by.change_members(action, target, f"{target}:7790")
            self.say(f"{action} {target}: done")
            if action == "remove":
                self.removed.add(target)
        except ClusterError as error:
            self.say(f"{action} {target}: {error}")

    async def _heal(self) -> None:
        """All faults end; the cluster must come together, and everything promised must be there."""
        self._quiet = True
        self.say("healing")
        self.network.heal_all()
        for host in self.hosts.values():
            for disk in host.disks.values():
                disk.fail_writes = disk.fail_syncs = None
                disk.latency = (0.0002, 0.002)
                disk.answer()
            if host.process.paused:
                host.process.resume(self.loop)
        await asyncio.sleep(4.5)  # whatever still pends of earlier faults ends within this
        self.network.heal_all()
        members = self.members() or self.founders
        for name, host in self.hosts.items():
            if host.process.paused:
                host.process.resume(self.loop)
            if name in members:
                await self.start(name)
        self.loop.create_task(self._remove_cron())
        deadline = self.loop.now + CONVERGES_S
        stable_since, stable_at = self.loop.now, -1
        while self.loop.now - stable_since < STABLE_S:
            # Before the look: after the last one nothing may happen, for what it saw is compared.
            await asyncio.sleep(0.1)
            self._check_alive()
            members = self.members()
            for name in members:
                await self.start(name)
            statuses = [engine.status() for engine in self.engines() if engine.node_id in members]
            together = (
                len(statuses) == len(members)
                and all(status.ready for status in statuses)
                and len({status.applied_index for status in statuses}) == 1
                and all(status.applied_index == status.last_index for status in statuses)
            )
            if not together or statuses[0].applied_index != stable_at:
                stable_since = self.loop.now
                stable_at = statuses[0].applied_index if together else -1
            if self.loop.now > deadline:
                view = "; ".join(
                    f"{s.node_id} {s.role} term {s.term} applied {s.applied_index} last {s.last_index} {s.ready_reason}"
                    for s in statuses
                )
                raise Violation("converges", f"{CONVERGES_S} s after all faults ended: {view}")
        engines = [engine for engine in self.engines() if engine.node_id in self.members()]
        machines = [engine.machine for engine in engines]
        digests = {machine.digest() for machine in machines}
        if len(digests) != 1:
            raise Violation("replicas are identical", f"rolling digests differ: {sorted(digests)}")
        for machine in machines:
            assert isinstance(machine, Machine)
            jobs = machine.state.jobs.values()
            chained = [job for job in jobs if job.queue == CHAIN_QUEUE]
            self.checks.added_at_the_end([(job.id, job.data.decode()[1:-1]) for job in chained])
            for job in chained:
                self.checks.pushed(job.id, known=False)
            self.checks.at_the_end({job.id: job.shown_state for job in jobs if job.queue not in (CRON_QUEUE, WORK)})
            self.checks.on_time({job.id for job in jobs if job.state == DELAYED}, self.loop.now)
            self.families.at_the_end(machine.state)
            self.sessions.at_the_end(machine.state)
            self.workers.at_the_end(machine.state)
        full = {machine.full_digest() for machine in machines if isinstance(machine, Machine)}
        if len(full) != 1:
            raise Violation("replicas are identical", "images differ")
