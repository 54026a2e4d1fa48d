"""A Kubernetes cluster for the tests that need one: made once, where it can be made."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.kubernetes import images
from tests.support.kubernetes.cluster import Cluster, missing
from tests.support.versions import PREVIOUS


@pytest.fixture(scope="session")
def machines() -> Iterator[Cluster]:
    """The real control plane and machines that run pods; skips, and says why, where there can be none."""
    if why := missing():
        pytest.skip(f"no Kubernetes cluster here: {why}")
    cluster = Cluster()
    try:
        cluster.start()
        cluster.add_image("quorumq:present", images.present(cluster.folder))
        # The same by another name, to be upgraded to.
        cluster.add_image("quorumq:next", images.present(cluster.folder))
        cluster.add_image(f"quorumq:{PREVIOUS}", images.previous(cluster.folder, PREVIOUS))
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def kubernetes(machines: Cluster) -> Iterator[Cluster]:
    """The same, with this test in its network."""
    with machines.network():
        yield machines
