"""Run one node until it is told to stop or cannot go on: compose it, start it, watch it, stop it in order.

Exit status: 0 after a stop that was asked for, 1 when the node cannot go on (a damaged log, a port in use), 2 for settings
that cannot be used (a host that is not this machine's, a folder that cannot be one), 3 when the node was removed from its cluster,
4 when its version is too old for the cluster or its data.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import uvloop

from quorumq.api.server import Server
from quorumq.api.settings.rows import NodeConfig
from quorumq.cli import logs
from quorumq.cli.leaving import GracefulShutdown, ProcessFile
from quorumq.cli.memory import give_back
from quorumq.cluster.addresses import is_loopback
from quorumq.cluster.engine import Engine
from quorumq.cluster.errors import ClusterError, NodeRemoved, NotUnderstood
from quorumq.node.machine.machine import Machine
from quorumq.node.node import Node

log = logging.getLogger("quorumq")

FAILED = 1
# File descriptors that a node would like to have: more than its bounds on connections and calls can use.
DESCRIPTORS_WANTED = 65_536
BAD_SETTINGS = 2
# What is wrong with a folder or an address is the setting's fault, and not the moment's, where the system says this.
OF_FOLDER = frozenset(
    {errno.EEXIST, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP}
)
OF_HOST = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
# How often it is looked whether the node is ready; a reason why not is logged when two looks find the same.
LOOK_S = 1.0
# What a listener is called in the log, by the setting of its port.
LISTENERS = {"HTTP_PORT": "http", "BULLMQ_PORT": "bullmq", "TCP_PORT": "tcp"}


def serve(config: NodeConfig, *, while_stdin: bool = False) -> int:
    """Run the node of `config`; return the exit status.

    while_stdin: stop as if told to when standard input ends, so that nodes do not outlive whoever started them.
    """
    logs.set_up(config.log_level, config.log_format, config.node_id)
    tell_descriptors(config, *raise_descriptor_limit())
    try:
        return uvloop.run(run(config, while_stdin=while_stdin))
    except (ClusterError, OSError, Unusable) as error:
        log.error("cannot go on: %s", in_words(error))
        return status_of(error)


class Unusable(Exception):
    """A setting that cannot be used, as the system says; the message names it and where it came from."""


def in_words(error: BaseException) -> str:
    """Return what the error says, without its number."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.strerror}: {error.filename}" if error.filename else error.strerror


def status_of(error: BaseException | None) -> int:
    """Return the exit status of a node that cannot go on."""
    if isinstance(error, Unusable):
        return BAD_SETTINGS
    return error.exit_code if isinstance(error, (NodeRemoved, NotUnderstood)) else FAILED


async def run(config: NodeConfig, *, while_stdin: bool) -> int:
    stop = stop_event(while_stdin=while_stdin)
    machine = Machine(timed_by_clients=config.clock == "clients")
    engine = Engine(config.cluster(), machine)
    node = Node(
        engine,
        machine,
        write_timeout_s=config.write_timeout_ms / 1000,
        shutdown_s=config.shutdown_timeout_ms / 1000,
    )
    server = Server(node, config)
    warn(config)
    try:
        await engine.start()
    except OSError as error:
        raise named(error, config) from None
    try:
        await node.start()
        await server.start()
    except BaseException as error:
        await engine.stop(transfer=False)
        raise of_listener(error, config) from None
    tune_garbage_collector()
    bound = {LISTENERS[port.setting]: port.address for port in server.ports}
    log.info("serving", extra={**bound, "peers": config.cluster().listen, "pid": os.getpid()})
    meanwhile = [asyncio.create_task(tell_readiness(config, engine, server)), asyncio.create_task(give_back(server))]
    file = ProcessFile(config.data_path, config.leaving_ms())
    file.write("serving")
    leaving = GracefulShutdown(server, node, engine, file, config.leaving_ms() / 1000)
    stop.leave, stop.hurry = leaving.begin, leaving.hurry
    status = await watch(engine, stop)
    for task in meanwhile:
        task.cancel()
    await asyncio.gather(*meanwhile, return_exceptions=True)
    await (shut_down(config, leaving, server, node, engine) if status == 0 else close(server, node, engine))
    file.remove()
    log.info("stopped")
    return status


def named(error: OSError, config: NodeConfig) -> Exception:
    """Name the setting behind an error of the engine's start, which opens the data folder and the peer listener."""
    if not error.errno:
        return error
    if is_of_host(error):
        return Unusable(f"{config.name_with_origin('host')} cannot be listened on: {reason_of(error)}")
    if error.errno == errno.EACCES and not error.filename:
        return Unusable(f"{config.name_with_origin('peer_port')} cannot be listened on: {reason_of(error)}")
    if error.errno == errno.EADDRINUSE:
        return OSError(f"cannot listen on {config.cluster().listen} (HOST, PEER_PORT): {reason_of(error)}")
    at = f" ({error.filename})" if error.filename and str(error.filename) != str(config.data_path) else ""
    text = f"{config.name_with_origin('data_path')} cannot be used: {error.strerror}{at}"
    return Unusable(text) if error.errno in OF_FOLDER else OSError(text)


def of_listener(error: BaseException, config: NodeConfig) -> BaseException:
    """Name the setting behind an error of a client listener's start, where it is the setting's fault."""
    if not isinstance(error, OSError):
        return error
    if is_of_host(error):
        return Unusable(f"{config.name_with_origin('host')} cannot be listened on: {reason_of(error)}")
    for setting in LISTENERS:
        if error.errno == errno.EACCES and f"({setting})" in str(error):
            return Unusable(f"{config.name_with_origin(setting.lower())} cannot be listened on: {reason_of(error)}")
    return error


def is_of_host(error: OSError) -> bool:
    return isinstance(error, socket.gaierror) or error.errno in OF_HOST


def reason_of(error: OSError) -> str:
    """Return what the system says, without what somebody has put before it."""
    return str(error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0))


async def tell_readiness(config: NodeConfig, engine: Engine, server: Server) -> None:
    """Log when the node becomes ready, and why it is not when that lasts. Runs until it is cancelled."""
    told = seen = ""
    compared = False
    while True:
        ready, why = server.readiness()
        now = "ready" if ready else f"not ready: {why}"
        if now != told and (ready or now == seen):
            log.info("%s", now)
            told = now
        if ready and not compared:
            # Only now is everything applied that its log holds, the last change of members included.
            compared = True
            warn_of_strangers(config, engine)
        seen = now
        await asyncio.sleep(LOOK_S)


def warn_of_strangers(config: NodeConfig, engine: Engine) -> None:
    """Say so when PEERS names nodes that are no members: what the log says counts, and nobody waits for them."""
    members = {member.id for member in engine.status().members}
    if strangers := sorted(set(config.peers) - members):
        log.warning(
            "PEERS names %s, but by this node's log the members are %s: `quorumq members add` adds a node, "
            "a change of PEERS does not",
            ", ".join(strangers),
            ", ".join(sorted(members)),
        )


class Stop(asyncio.Event):
    """Set when the node is told to stop.

    The second time nobody is waited for any more, the third time the process ends at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hurry: Callable[[], object] = lambda: None
        self.leave: Callable[[], object] = lambda: None
        self._hurried = False

    def request(self, what: str) -> None:
        """Somebody wants this process to end."""
        if not self.is_set():
            log.info("stopping: %s", what)
            self.set()
        elif not self._hurried:
            log.info("stopping at once: %s again", what)
            self._hurried = True
            self.hurry()
        else:
            os._exit(FAILED)


def stop_event(*, while_stdin: bool) -> Stop:
    """Return what SIGTERM, SIGINT and (if wanted) the end of standard input set; SIGUSR1 is what `quorumq prestop` sends."""
    loop, stop = asyncio.get_running_loop(), Stop()
    loop.add_signal_handler(signal.SIGUSR1, lambda: stop.leave())

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.request, number.name)
    if while_stdin:
        descriptor = sys.stdin.fileno()

        def readable() -> None:
            if not os.read(descriptor, 4096):
                loop.remove_reader(descriptor)
                stop.request("standard input ended")

        loop.add_reader(descriptor, readable)
    return stop


def warn(config: NodeConfig) -> None:
    """Say what is allowed but hardly meant, and what is open: a line for each."""
    if config.clock == "clients":
        log.warning("CLOCK is clients: whoever uses BullMQ's backend socket says what time it is; for tests only")
    for line in (*peer_openings(config), *open_doors(config)):
        log.warning("%s", line)


def open_doors(config: NodeConfig) -> Iterator[str]:
    """Say, in a line each, what the settings leave open to clients."""
    beyond = not is_loopback(config.host)
    tokens = bool(config.auth_tokens) or config.auth_tokens_file is not None
    if not tokens and beyond:
        yield "AUTH_TOKENS is not set: whoever reaches the HTTP port has every right, but /admin, which is this machine's alone"
    if not tokens and "*" in config.cors_allow_origin:
        # That includes a browser on this very machine.
        yield (
            "CORS_ALLOW_ORIGIN is * and AUTH_TOKENS is not set: every web page has every right but /admin, if it is open in a "
            "browser that reaches the HTTP port"
        )
    if tokens and beyond and not config.metrics_auth:
        yield "METRICS_AUTH is not true: whoever reaches the HTTP port can read /prometheus"
    if tokens and "any" in config.worker_endpoints:
        yield "WORKER_ENDPOINTS is any: push workers may call every address that this machine reaches, but the cluster's own"
    if config.webhook_allow_private:
        yield "WEBHOOK_ALLOW_PRIVATE is true: webhooks may call every address that this machine reaches"
    if beyond and "*" in config.trusted_proxies:
        yield (
            "TRUSTED_PROXIES is *: every client is believed about its address, and CONNECTIONS_PER_CLIENT_MAX bounds nobody"
        )


def peer_openings(config: NodeConfig) -> list[str]:
    """Return what is open at the peer port, and what closes it; nothing for a port that only this machine reaches."""
    if is_loopback(config.peer_host()):
        return []
    said = []
    if not config.guarded:
        said.append(
            "THE PEER PORT IS OPEN (CLUSTER_INSECURE=true, and neither CLUSTER_SECRET nor mutual TLS): whoever reaches "
            f"{config.cluster().listen} can read and change everything, and end the cluster"
        )
    elif config.secret_before() == "" and not config.encrypted:
        said.append(
            "THE PEER PORT IS STILL OPEN (CLUSTER_SECRET_PREVIOUS=none): whoever reaches it is let in without a secret, until "
            "all nodes have CLUSTER_SECRET and are started without CLUSTER_SECRET_PREVIOUS"
        )
    elif config.secret_before():
        said.append(
            "TWO SECRETS ARE GOOD (CLUSTER_SECRET_PREVIOUS): the one before is, until all nodes have the new one and are "
            "started without CLUSTER_SECRET_PREVIOUS"
        )
    if config.peer_tls_cert and not config.encrypted:
        said.append(
            "LINKS BETWEEN NODES NEED NOT BE ENCRYPTED (PEER_TLS=optional): nodes without TLS are talked to, until all are "
            "started with certificates and without PEER_TLS=optional"
        )
    elif not config.peer_tls_cert:
        said.append(
            "THE LINKS BETWEEN NODES ARE NOT ENCRYPTED (PEER_TLS_CERT is not set): whoever is on the network between them can "
            "read all jobs and change them"
        )
    return said


def tune_garbage_collector() -> None:
    """Keep collections short: what start-up made stays, and requests make little that needs a collector."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def raise_descriptor_limit() -> tuple[int, int]:
    """Raise the soft limit of file descriptors as far as the hard one lets it; return it as it was and as it is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # Some systems refuse what they call their hard limit.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return soft, resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def tell_descriptors(config: NodeConfig, before: int, limit: int) -> None:
    """Say how many file descriptors there are, and when they are fewer than the settings let clients take."""
    if limit == resource.RLIM_INFINITY:
        return
    for_clients = limit - min(config.descriptors_kept, limit // 2)
    if for_clients < config.connections_max:
        log.warning(
            "%d file descriptors (ulimit -n): at most %d connections of clients, not %d (CONNECTIONS_MAX)",
            limit,
            for_clients,
            config.connections_max,
        )
    elif limit != before:
        log.info("the limit of file descriptors was raised from %d to %d", before, limit)


async def watch(engine: Engine, stop: asyncio.Event) -> int:
    """Wait for the order to stop, or for the engine to give up."""
    stopping = asyncio.ensure_future(stop.wait())
    either: list[asyncio.Future[Any]] = [stopping, engine.failed]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if not engine.failed.done():
        return 0
    stopping.cancel()
    error = engine.failed.exception()
    log.error("cannot go on: %s", in_words(error) if error else "the engine stopped")
    return status_of(error)


async def shut_down(config: NodeConfig, leaving: GracefulShutdown, server: Server, node: Node, engine: Engine) -> None:
    """Stop in the order that costs clients least.

    First the node is not ready and serves on, while leadership goes to another one (leaving.py); then it takes nothing new
    and finishes what is under way, as far as the time allows; then everything closes.
    """
    await leaving.begin()
    finishing = asyncio.create_task(server.stop(config.shutdown_timeout_ms / 1000))
    hurried = asyncio.create_task(leaving.when_hurried())
    await asyncio.wait((finishing, hurried), return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    server.cut_off()
    await finishing
    await node.stop()
    await engine.stop()


async def close(server: Server, node: Node, engine: Engine) -> None:
    """Stop a node whose engine gave up: what is under way cannot end well, so it fails first and is answered so."""
    await engine.stop(transfer=False)
    await server.stop(1)
    await node.stop(at_once=True)
