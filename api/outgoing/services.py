"""What a node calls others for, made from its settings: webhooks and push workers."""

from __future__ import annotations

from quorumq.api.settings.rows import NodeConfig
from quorumq.node.node import Node

from .egress import CallPolicy
from .push_worker import PushWorkers, Render
from .webhooks import WebhookDeliveries


class Outgoing:
    """The calls of one node; they begin and end with it.

    render: what the endpoint of a push worker is sent for a job and its token.
    """

    def __init__(self, node: Node, config: NodeConfig, render: Render) -> None:
        self.webhooks = WebhookDeliveries(
            node.engine, node.machine, node.batcher, allow_private=config.webhook_allow_private
        )
        self.push_workers = PushWorkers(
            node.engine,
            node.machine,
            node.batcher,
            node.now_ms,
            render,
            policy=CallPolicy(config.worker_endpoints, config.own_ports()),
            lock_ms=config.worker_lock_ms,
            calls_max=config.worker_calls_max,
            write_timeout_s=node.timeout_s,
        )
        # What holds jobs ends first.
        node.attach(self.push_workers)
        node.attach(self.webhooks)
