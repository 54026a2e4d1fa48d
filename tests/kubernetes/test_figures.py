"""The chart's alerts and its dashboard use only figures that a node shows, and each alert is in docs/kubernetes.md."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import urllib.request
from pathlib import Path

import pytest

from tests.consensus.test_tls import Authority
from tests.kubernetes.rendering import CHART, EVERYTHING, ROOT, rendered, the
from tests.support.local_cluster import LocalCluster

NAME = re.compile(r"\b(?:quorumq|bunqueue)_[a-z_]+\b")
LABEL = re.compile(r"\b(?:by|on) \(([a-z_, ]+)\)")


def alerts() -> dict[str, str]:
    groups = the("PrometheusRule", rendered(values=EVERYTHING))["spec"]["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def panels() -> dict[str, list[str]]:
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text("utf-8"))
    return {one["title"]: [target["expr"] for target in one["targets"]] for one in dashboard["panels"]}


async def shown(folder: Path) -> tuple[set[str], str]:
    """Return the names of all figures that a node with a job and a certificate gives, and the page."""
    cert, key = Authority(folder, "authority").issue("node", "IP:127.0.0.1")
    async with LocalCluster(2, TLS_CERT=str(cert), TLS_KEY=str(key), TLS="optional") as cluster:
        # Only a leader knows how far others are behind.
        node = await cluster.leader()

        def ask() -> str:
            push = urllib.request.Request(f"{node.url}/queues/mail/jobs", b'{"data": 1}')
            urllib.request.urlopen(push, timeout=20).close()
            with urllib.request.urlopen(f"{node.url}/prometheus", timeout=20) as reply:
                return str(reply.read().decode())

        page = await asyncio.to_thread(ask)
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE):
        names |= {f"{name}_{end}" for end in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return names, page


@pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by the openssl command")
async def test_alerts_and_dashboard_use_figures_that_there_are(tmp_path: Path) -> None:
    names, page = await shown(tmp_path)
    expressions = [*alerts().values(), *(one for panel in panels().values() for one in panel)]
    used = {name for one in expressions for name in NAME.findall(re.sub(r'"[^"]*"', "", one))}
    assert len(used) > 25
    assert used <= names
    # Labels that are the node's own, and not its pod's.
    by = {label.strip() for one in expressions for found in LABEL.findall(one) for label in found.split(",")}
    own = by - {"namespace", "pod", "service", "le"}
    assert all(re.search(rf'[{{,]{label}="', page) for label in own), own


@pytest.mark.parametrize("which", ["alerts", "panels"])
def test_every_expression_is_of_this_release_alone(which: str) -> None:
    if which == "alerts":
        expressions = [expression for alert, expression in alerts().items() if alert != "Mine"]
        selector = '{namespace="ns",service="queue-peers"}'
    else:
        expressions = [one for panel in panels().values() for one in panel]
        selector = '{namespace="$namespace",service="$service"}'
    for one in expressions:
        found = re.findall(r"\b(?:quorumq|bunqueue)_[a-z_]+(\{[^}]*\})?", one)
        assert found and set(found) == {selector}, one


def test_the_monitor_asks_every_node_once() -> None:
    objects = rendered(values=EVERYTHING)
    monitor = the("ServiceMonitor", objects)["spec"]
    selected = [
        one["metadata"]["name"]
        for one in objects
        if one["kind"] == "Service" and monitor["selector"]["matchLabels"].items() <= one["metadata"]["labels"].items()
    ]
    assert selected == ["queue-peers"]
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] in [port["name"] for port in the("Service", objects, "queue-peers")["spec"]["ports"]]
    # METRICS_AUTH is on there.
    assert endpoint["authorization"]["credentials"] == {"name": "quorumq-auth", "key": "token"}


def test_the_dashboard_is_in_its_configmap_as_it_is() -> None:
    found = the("ConfigMap", rendered(values=EVERYTHING), "queue-dashboard")
    assert json.loads(found["data"]["quorumq.json"]) == json.loads(
        (CHART / "files" / "dashboard.json").read_text("utf-8")
    )
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_what_to_do_for_each_alert_is_written() -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text("utf-8")
    described = set(re.findall(r"^\| `(Quorumq\w+)` \|", text, re.MULTILINE))
    assert described == set(alerts()) - {"Mine"}
