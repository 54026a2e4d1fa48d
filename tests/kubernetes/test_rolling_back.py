"""A revision that is no good, on a real control plane: two of three serve on, and helm takes it back by itself."""

from __future__ import annotations

import pytest

from tests.kubernetes.clients import Clients
from tests.kubernetes.release import installed
from tests.kubernetes.test_upgrading import watched
from tests.support.kubernetes.cluster import Cluster, Trouble

pytestmark = [pytest.mark.timeout(600), pytest.mark.long]


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param({"image.tag": "nowhere"}, id="an image that there is not"),
        # The schema knows no host; a node that cannot listen there ends, again and again.
        pytest.param({"config.host": "192.0.2.1"}, id="nodes that end"),
    ],
)
async def test_a_bad_revision_is_rolled_back_by_itself(kubernetes: Cluster, bad: dict[str, str]) -> None:
    async with installed(kubernetes, "bad") as one:
        good = dict(one.values)
        async with watched(one, 3) as seen, Clients(one, rate=100) as clients:
            await clients.until(50)
            with pytest.raises(Trouble, match="roll"):
                await one.upgrade("--rollback-on-failure", "--timeout=40s", values=bad)
            one.values = good
            await one.ready(3)
            await clients.until(50)
        print(clients.summary())
        assert clients.failed == []
        assert seen.most_away == 1
        for pod in await one.pods():
            assert await clients.broken(pod) == []
        await one.converged(3)
