"""An upgrade from the version before to this one, and back before anything is final, on a real control plane."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.kubernetes.clients import Clients
from tests.kubernetes.release import NAME, Release, release
from tests.kubernetes.rendering import CHART
from tests.support.kubernetes.cluster import Cluster
from tests.support.versions import PREVIOUS

pytestmark = [pytest.mark.timeout(600), pytest.mark.long]
# What the chart asks nodes for, and what the version before, which had no chart, knows it as.
THEN = {"/startupz": "/live", "/readyz": "/ready", "/livez": "/live"}


def chart_of_then(folder: Path) -> Path:
    """The chart as it would have been: other probes, and nothing done before the end."""
    chart = shutil.copytree(CHART, folder / "chart")
    path = chart / "templates" / "statefulset.yaml"
    text = path.read_text("utf-8")
    for now, then in THEN.items():
        assert f'"{now}"' in text
        text = text.replace(f'"{now}"', f'"{then}"')
    assert "command: [quorumq, prestop]" in text
    path.write_text(text.replace("command: [quorumq, prestop]", 'command: ["true"]'), "utf-8")
    return chart


async def level(one: Release) -> int:
    return int((await one.ask(f"{NAME}-0", "/admin/cluster"))["level"])


async def test_to_this_version_and_back_and_here_again_no_promise_is_broken(
    kubernetes: Cluster, tmp_path: Path
) -> None:
    async with release(kubernetes, "versions") as one:
        await one.secrets()
        then = chart_of_then(tmp_path)

        async def become(chart: Path, tag: str) -> None:
            one.chart = chart
            # The version before has no `members resize`.
            has_jobs = "false" if tag == PREVIOUS else "true"
            await one.upgrade(values={"image.tag": tag, "membership.enabled": has_jobs})
            await one.ready(3)
            await clients.until(30)

        one.chart = then
        await one.install(**{"image.tag": PREVIOUS})
        await one.ready(3)
        async with Clients(one, rate=100) as clients:
            await clients.until(30)
            await become(CHART, "present")
            assert await level(one) == 0
            # Nothing is final yet.
            since = clients.now
            await become(then, PREVIOUS)
            assert clients.failed_since(since) == []
            await become(CHART, "present")
            since = clients.now
            await one.execute(f"{NAME}-0", "quorumq", "level", "raise")
            assert await level(one) == 1
            await become(CHART, "next")
            assert clients.failed_since(since) == []
        print(clients.summary(), *clients.failed[:10], sep="\n")
        for pod in await one.pods():
            assert await clients.broken(pod) == []
        await one.converged(3)
