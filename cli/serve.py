"""Run one node until it is told to stop or cannot go on: compose it, start it, watch it, stop it in order.

Exit status: 0 after a stop that was asked for, 1 when the node cannot go on (a damaged log, a port in use), 2 for settings
that cannot be used, 3 when the node was removed from its cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import sys
from functools import partial
from typing import Any

import uvloop

from api.dialects.bullmq import workers
from api.server import Server
from cli import logs
from cluster.engine import Engine
from cluster.errors import ClusterError, Removed
from node.config import NodeConfig
from node.machine import Machine
from node.node import Node

log = logging.getLogger("quorumq")

FAILED = 1
# How often it is looked whether the node is ready; a reason why not is logged when two looks find the same.
LOOK_S = 1.0
# What a listener is called in the log, by the setting of its port.
LISTENERS = {"HTTP_PORT": "http", "BULLMQ_PORT": "bullmq"}


def serve(config: NodeConfig, *, while_stdin: bool = False) -> int:
    """Run the node of `config`; return the exit status.

    while_stdin: stop as if told to when standard input ends, so that nodes do not outlive whoever started them.
    """
    logs.set_up(config.log_level, config.log_format, config.node_id)
    try:
        return uvloop.run(run(config, while_stdin=while_stdin))
    except (ClusterError, OSError) as error:
        log.error("cannot go on: %s", in_words(error))
        return status_of(error)


def in_words(error: BaseException) -> str:
    """Return what the error says, without its number."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.strerror}: {error.filename}" if error.filename else error.strerror


def status_of(error: BaseException | None) -> int:
    """Return the exit status of a node that cannot go on."""
    return error.exit_code if isinstance(error, Removed) else FAILED


async def run(config: NodeConfig, *, while_stdin: bool) -> int:
    stop = stop_event(while_stdin=while_stdin)
    machine = Machine()
    engine = Engine(config.cluster(), machine)
    node = Node(engine, machine, config, render=partial(workers.delivery, config.queue_prefix))
    server = Server(node, config)
    warn(config)
    try:
        await engine.start()
    except OSError as error:
        raise named(error, config) from None
    try:
        await node.start()
        await server.start()
    except BaseException:
        await engine.stop(transfer=False)
        raise
    tune_garbage_collector()
    bound = {LISTENERS[listener.setting]: listener.address for listener in server.listeners}
    log.info("serving", extra={**bound, "peers": config.cluster().listen, "pid": os.getpid()})
    telling = asyncio.create_task(tell_readiness(config, engine, server))
    status = await watch(engine, stop)
    telling.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await telling
    await (shut_down(config, server, node, engine) if status == 0 else close(server, node, engine))
    log.info("stopped")
    return status


def named(error: OSError, config: NodeConfig) -> OSError:
    """Name the setting behind an error of the engine's start, which opens the data folder and the peer listener."""
    if not error.errno:
        return error
    of_address = isinstance(error, socket.gaierror) or error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL)
    if of_address or (error.errno == errno.EACCES and not error.filename):
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno)
        return OSError(f"cannot listen on {config.cluster().listen} (HOST, PEER_PORT): {reason}")
    at = f" ({error.filename})" if error.filename and str(error.filename) != str(config.data_path) else ""
    return OSError(f"DATA_PATH {config.data_path} cannot be used: {error.strerror}{at}")


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


def stop_event(*, while_stdin: bool) -> asyncio.Event:
    """Return what SIGTERM, SIGINT and (if wanted) the end of standard input set; a second signal ends the process."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def told(what: str) -> None:
        if stop.is_set():
            os._exit(FAILED)
        log.info("stopping: %s", what)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told, number.name)
    if while_stdin:
        descriptor = sys.stdin.fileno()

        def readable() -> None:
            if not os.read(descriptor, 4096):
                loop.remove_reader(descriptor)
                told("standard input ended")

        loop.add_reader(descriptor, readable)
    return stop


def warn(config: NodeConfig) -> None:
    """Say what is allowed but hardly meant."""
    proof = config.cluster_secret or config.peer_tls_cert
    if (len(config.members()) > 1 or config.peers_dns) and not proof and not is_loopback(config.host):
        log.warning("CLUSTER_SECRET is not set, nor PEER_TLS_CERT: whoever reaches the peer port can join the cluster")
    if not config.auth_tokens and config.auth_tokens_file is None and not is_loopback(config.host):
        log.warning("AUTH_TOKENS is not set: whoever reaches the HTTP port has every right")


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def tune_garbage_collector() -> None:
    """Keep collections short: what start-up made stays, and requests make little that needs a collector."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


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


async def shut_down(config: NodeConfig, server: Server, node: Node, engine: Engine) -> None:
    """Stop in the order that costs clients least.

    Leadership goes to another node while this one still answers; then it takes nothing new and finishes what is under
    way, as far as the time allows; then everything closes.
    """
    node.drain()
    if engine.is_leader and len(engine.status().members) > 1:
        await engine.transfer_leadership()
    await server.stop(config.shutdown_timeout_ms / 1000)
    await node.stop()
    await engine.stop()


async def close(server: Server, node: Node, engine: Engine) -> None:
    """Stop a node whose engine gave up: what is under way cannot end well, so it fails first and is answered so."""
    await engine.stop(transfer=False)
    await server.stop(1)
    await node.stop(at_once=True)
