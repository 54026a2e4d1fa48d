"""One simulated cluster: nodes that start, crash, pause and come back, the faults that befall them, and the clients that notice."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cluster.raft
from cluster import snapshots
from cluster.config import ClusterConfig
from cluster.engine import Engine
from cluster.errors import ClusterError, LogDamaged, Removed
from cluster.surroundings import Surroundings
from cluster.transport import Listener
from node.machine import Machine
from node.node import Node, Once
from node.operations.adding import AddJobs
from node.operations.jobs import AckJob, FailJob, FinishAndPull, GetJobState, Pulled, PullJobs, PushJobs
from node.operations.schedules import AddCron, DeleteCron
from node.refusals import Refusal
from node.state.job import JobSpec, Options
from tests.simulation.checks import Checks, Violation
from tests.simulation.disk import SimDisk
from tests.simulation.loop import Process, StandstillError, VirtualLoop
from tests.simulation.network import Network, SimLinks
from tests.simulation.profiles import Profile

QUICK = Options(max_attempts=50, backoff=10)
CRON_QUEUE, CRON_MS = "cron", 900
CHAIN_QUEUE = "chain"
CONVERGES_S = 60
STABLE_S = 3.0
"""Without change for so long: longer than a client waits for its answer between two attempts of the same batch."""
EPOCH_MS = 1_700_000_000_000


def _taken(reply: Pulled) -> list[tuple[str, str | None, int]]:
    return [(job.id, job.token, job.fence) for job in reply.jobs]


class _SimWriter:
    """Writes a snapshot of this very moment; that it is done is known a while later."""

    fork_s = 0.0

    def __init__(self, world: World) -> None:
        self._world = world
        self._end: asyncio.TimerHandle | None = None

    def start(self, work: Callable[[Callable[[], None]], Any], done: Callable[[Exception | None], None]) -> None:
        error: Exception | None = None
        try:
            work(lambda: None)
        except Exception as caught:
            error = caught
        self._end = self._world.loop.call_later(self._world.rng.uniform(0.01, 0.5), done, error)

    def poll(self) -> None:
        pass

    def stop(self) -> None:
        if self._end is not None:
            self._end.cancel()


class _SimSurroundings(Surroundings):
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

    def links(self, config: ClusterConfig, listener: Listener) -> Any:
        return SimLinks(self._world.network, self._host.process, config, listener)

    def snapshot_writer(self) -> snapshots.Writer:
        return _SimWriter(self._world)

    async def resolve(self, names: Iterable[str]) -> list[str]:
        return [f"{name}:7790" for name in self._world.up()]

    def wall_ms(self) -> int:
        return EPOCH_MS + int(self._world.loop.now * 1000) + self._host.clock_offset_ms

    def random_bits(self, bits: int) -> int:
        return self._world.rng.getrandbits(bits)


class Host:
    """A machine: its disks and its clock stay when the process on it dies."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.disks: dict[str, SimDisk] = {}
        self.clock_offset_ms = 0
        self.process = Process(name)
        self.engine: Engine | None = None
        self.node: Node | None = None
        self.starting = False
        self.wiped_at = float("-inf")
        self.whole = False
        """Whether its disk holds all it promised: not before its first probation ended, nor after a wipe until the next ends."""

    @property
    def up(self) -> bool:
        return self.node is not None


class World:
    """Everything there is, for one seed."""

    def __init__(self, seed: int, nodes: int, profile: Profile, trace: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.profile = profile
        self.rng = random.Random(seed)
        random.seed(seed)
        self.loop = VirtualLoop()
        self.network = Network(self.loop, self.rng, profile.delay)
        self.checks = Checks()
        self.faults = 0
        self.founders = [f"n{i + 1}" for i in range(nodes)]
        # One machine more than members, for changes of the membership.
        self.hosts = {f"n{i + 1}": Host(f"n{i + 1}") for i in range(nodes + 1)}
        # Every third seed: nodes that know no list, and find each other by a name.
        self.discovers = seed % 3 == 2
        self._trace = trace
        self._jobs = 0
        self._crons_added = 0
        self._quiet = False
        self._clients: list[asyncio.Task[None]] = []
        cluster.raft.Clock.now = self.loop.time

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
        )

    async def start(self, name: str) -> None:
        """Start the process on a machine, unless it runs."""
        host = self.hosts[name]
        if host.up or host.starting:
            return
        host.starting = True
        process = host.process = Process(name)
        machine = Machine()
        engine = Engine(self.config(name), machine, _SimSurroundings(self, host))
        self._watch(name, engine)
        try:
            await self.loop.create_task(engine.start(), context=process.context())
        except OSError as error:
            self.say(f"{name} does not start: {error}")
            process.dead = True
            host.starting = False
            self._later(1.0, name)
            return
        except LogDamaged as error:
            raise Violation("a crash never damages", f"{name}: {error}") from error
        host.engine = engine
        held = engine._log
        self.checks.promised(name, held.term, held.voted_for, held.commit)
        self._watch_log(name, engine)
        node = Node(engine, machine, clock=_SimSurroundings(self, host).wall_ms)
        await self.loop.create_task(node.start(), context=process.context())
        host.node, host.starting = node, False
        self.say(f"{name} started at entry {engine.applied_index}, term {held.term}")

    def _watch(self, name: str, engine: Engine) -> None:
        replica = engine._replica
        apply, checks = replica.apply, self.checks

        def applied(index: int, command: bytes) -> None:
            self._applying = index
            checks.applied(name, index, command)
            apply(index, command)

        replica.apply = applied  # type: ignore[method-assign]
        settled = replica._settled

        def once(batch: Any, outcome: Any) -> None:
            checks.settled(name, batch.key, self._applying)
            settled(batch, outcome)

        replica._settled = once
        engine.on_role_change(lambda leads: checks.leads(name, engine._raft.term) if leads else None)

    def _watch_log(self, name: str, engine: Engine) -> None:
        journal = engine._log
        durable = journal.on_durable

        def seen() -> None:
            durable()
            if journal.durable == journal.appended:
                self.checks.promised(name, journal.term, journal.voted_for, journal.commit)

        journal.on_durable = seen

    def crash(self, name: str, *, wipe: bool = False) -> None:
        host = self.hosts[name]
        if not host.up:
            return
        assert host.engine is not None
        error = host.engine.failed.exception() if host.engine.failed.done() else None
        if error is not None and not isinstance(error, Removed):
            # It stopped by itself before it crashed, and nobody has looked since.
            violation = Violation("no node stops by itself", f"{name}: {type(error).__name__}: {error}")
            self.checks.first_violation = self.checks.first_violation or violation
        host.process.dead = True
        host.engine._driver.stopped = True
        host.node = host.engine = None
        self.network.leave(name)
        for key in sorted(host.disks):
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

    # -- clients -----------------------------------------------------------------------------------------------------

    async def _client(self, number: int) -> None:
        rng = random.Random(self.seed * 1000 + number)
        while not self._quiet:
            await asyncio.sleep(rng.expovariate(self.profile.rate / self.profile.clients))
            if rng.random() < 0.1 and not self._quiet:
                await self._add(rng)
                continue
            names = self.up()
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
            fired = sum(job.queue == CRON_QUEUE for job in machine.state.jobs.values())
            if self._crons_added == 1 and cron.executions != fired:
                self.checks.first_violation = Violation(
                    "a cron fires once per due time", f"{cron.executions} executions made {fired} jobs"
                )
            removing = self.loop.create_task(leader.node.submit(DeleteCron("every")), context=leader.process.context())
            await asyncio.wait({removing}, timeout=5.0)
            if removing.done():
                removing.exception()

    async def _push(self, node: Node, rng: random.Random) -> None:
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
            names = self.up()
            if names:
                host = self.hosts[rng.choice(names)]
                assert host.node is not None
                adding = host.node.submit(
                    AddJobs(CHAIN_QUEUE, jobs), lambda reply: list(reply.ids), once=Once(key, b"same")
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

    async def _read(self, node: Node, rng: random.Random) -> None:
        known = [job_id for job_id, job in self.checks.jobs.items() if job.pushed]
        if known:
            job_id = rng.choice(known[-30:])
            job = self.checks.jobs[job_id]
            acked = job.acked
            state = await node.ask(GetJobState(job_id))
            self.checks.read(job_id, state, pushed_before=True, acked_before=acked)

    _actions = (_push, _push, _push, _work, _work, _work, _work, _read, _read, _chain, _chain)

    # -- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Live through the seed's faults, heal, and check. Raises Violation."""
        try:
            self.loop.run_until_complete(self._live())
        except StandstillError as error:
            raise Violation("time goes on", str(error)) from None
        finally:
            for task in asyncio.all_tasks(self.loop):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
            cluster.raft.Clock.now = time.monotonic
            self.loop.close()

    async def _live(self) -> None:
        for name in self.founders:
            await self.start(name)
        self._clients = [self.loop.create_task(self._add_cron())]
        self._clients += [self.loop.create_task(self._client(number)) for number in range(self.profile.clients)]
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
                if isinstance(error, Removed) and name not in self.members():
                    self.say(f"{name} was told that it is removed")
                    self.retire(name)
                    continue
                if isinstance(error, Violation):
                    raise error
                raise Violation("no node stops by itself", f"{name}: {type(error).__name__}: {error}")
        for task in self._clients:
            if task.done() and task.exception() is not None:
                raise task.exception()  # type: ignore[misc]
        if self.loop.trouble:
            raise Violation("no exception gets lost", self.loop.trouble[0])

    async def _fault(self) -> None:
        name, fault = self.rng.choice(sorted(self.hosts)), self.profile.pick(self.rng)
        self.faults += 1
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
        self._later(self.rng.uniform(0.05, 4.0), name)

    def _later(self, after_s: float, name: str) -> None:
        self.loop.call_later(after_s, lambda: self.loop.create_task(self._start_checked(name)))

    async def _start_checked(self, name: str) -> None:
        if not self.hosts[name].disks["log"].files and name not in (self.members() or self.founders):
            return  # it was retired meanwhile
        try:
            await self.start(name)
        except Violation as violation:
            self.checks.first_violation = self.checks.first_violation or violation

    async def _fault_crash_all(self, name: str) -> None:
        for each in self.up():
            self.crash(each)
            self._later(self.rng.uniform(0.05, 3.0), each)

    async def _fault_wipe(self, name: str) -> None:
        # Two disks lost before the first node is whole again are beyond what is promised; so is one of two voters', and
        # a member that is away may hold a change of the membership that leaves two.
        members = self.members()
        if not all(self.hosts[each].up for each in members):
            return
        enough = len(members) > 2 and all(len(engine._raft.membership.voters) > 2 for engine in self.engines())
        if (
            enough
            and name in members
            and self.hosts[name].up
            and all(self._whole(self.hosts[each]) for each in members)
        ):
            self.crash(name, wipe=True)
            self.hosts[name].whole = False
            self.hosts[name].wiped_at = self.loop.now
            self._later(self.rng.uniform(0.05, 2.0), name)

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
            self.loop.call_later(seconds, process.resume, self.loop)

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
        self.loop.call_later(self.rng.uniform(0.2, 8.0), self._heal_pair, name, peer)

    def _heal_pair(self, name: str, peer: str) -> None:
        self.network.heal(name, peer)
        self.network.heal(peer, name)

    async def _fault_isolate(self, name: str) -> None:
        side = [other for other in sorted(self.hosts) if other != name and self.rng.random() < 0.3] + [name]
        for inside in side:
            for outside in sorted(self.hosts):
                if outside not in side:
                    self.network.cut(inside, outside)
                    self.network.cut(outside, inside)
                    self.loop.call_later(self.rng.uniform(1, 8.0), self._heal_pair, inside, outside)
        self.say(f"partition: {', '.join(side)} on one side")

    async def _fault_clock(self, name: str) -> None:
        self.hosts[name].clock_offset_ms = self.rng.choice((-3_600_000, -5000, 0, 5000, 60_000))
        self.say(f"clock of {name} jumps to {self.hosts[name].clock_offset_ms} ms")

    async def _fault_slow_disk(self, name: str) -> None:
        for disk in self.hosts[name].disks.values():
            before = disk.latency
            disk.latency = (0.01, self.rng.choice((0.05, 0.3)))
            self.loop.call_later(self.rng.uniform(0.5, 4.0), setattr, disk, "latency", before)
        self.say(f"disk of {name} is slow")

    async def _fault_full_disk(self, name: str) -> None:
        code = self.rng.choice((28, 5))
        for disk in self.hosts[name].disks.values():
            disk.fail_writes = code
            self.loop.call_later(self.rng.uniform(0.5, 4.0), setattr, disk, "fail_writes", None)
        self.say(f"disk of {name} fails with errno {code}")

    async def _fault_failing_sync(self, name: str) -> None:
        for disk in self.hosts[name].disks.values():
            disk.fail_syncs = 5
            self.loop.call_later(self.rng.uniform(0.05, 2.0), setattr, disk, "fail_syncs", None)
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
            self.hosts[target].whole = False
            # One that was removed and never heard of it comes again as the documents say: with an empty disk.
            for disk in self.hosts[target].disks.values():
                disk.wipe()
            self.checks.wiped(target)
            await self.start(target)
        elif len(membership.seats) < 3 or any(self.loop.now - host.wiped_at < 0.5 for host in self.hosts.values()):
            # A disk that was lost just now, and a removal before the leader can know of it: two losses at once.
            return
        else:
            action, target = "remove", self.rng.choice(sorted(set(membership.seats) - {leader.node_id}))
        by = self.rng.choice(self.engines())
        self.say(f"{action} {target}, asked of {by.node_id}")
        self.loop.create_task(self._change(by, action, target), context=self.hosts[by.node_id].process.context())

    async def _change(self, by: Engine, action: str, target: str) -> None:
        try:
            await by.change_members(action, target, f"{target}:7790")
            self.say(f"{action} {target}: done")
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
            await asyncio.sleep(0.1)
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
            self.checks.at_the_end({job.id: job.shown_state for job in jobs if job.queue != CRON_QUEUE})
        full = {machine.full_digest() for machine in machines if isinstance(machine, Machine)}
        if len(full) != 1:
            raise Violation("replicas are identical", "images differ")
