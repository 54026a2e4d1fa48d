"""A data folder of each earlier version is opened, and means what it meant: the same digests after the same entries.

The folders are of lone nodes that served the recorded cases of all dialects, and were stopped. What is said of them was found with the
version that wrote them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from quorumq.cluster import recovery
from quorumq.cluster.config import ClusterConfig
from quorumq.cluster.disk import Disk
from quorumq.cluster.messages import replicated
from quorumq.cluster.replica import Replica
from quorumq.node.machine.machine import Machine
from tests.support.versions import unpacked

HERE = Path(__file__).parent
# Version, entries (what the engine keeps of members is one), digest and full digest after the last of them, jobs.
FOLDERS = [
    ("0.1.0", 916, "4743fbb4762aafb013e278112490f55b", "3e6cf80b9b34b1050671c8797608a43f", 1318),
]


@pytest.mark.parametrize(
    ("version", "entries", "digest", "full_digest", "jobs"), FOLDERS, ids=lambda value: str(value)[:8]
)
def test_an_older_folder_means_what_it_meant(
    version: str, entries: int, digest: str, full_digest: str, jobs: int, tmp_path: Path
) -> None:
    with tarfile.open(HERE / f"folder-{version}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    machine = Machine()
    replica = Replica(machine, lambda batch, outcome: None)
    config = ClusterConfig(node_id="n1", peers={"n1": "h:1"}, listen="h:1", data_dir=tmp_path)
    log, _, index = recovery.recover(config, Disk(tmp_path / "log"), Disk(tmp_path / "snapshots"), replica)
    applied = 0
    for command, at, _ in log.entries_from(index + 1, None, None):
        if (ours := replicated(command)) is not None:
            replica.apply(at, ours)
            applied += 1
    assert (applied, machine.digest(), len(machine.state.jobs)) == (entries, digest, jobs)
    assert machine.errors == 0 and machine.level == 0
    # Below the first level the image is the same to the byte, and the older version can go on from it.
    assert machine.full_digest() == full_digest
    image = tmp_path / "image"
    image.write_bytes(b"".join(machine.image()))
    program = (
        "import sys; from pathlib import Path; from node.machine import Machine; machine = Machine(); "
        "machine.restore([Path(sys.argv[1]).read_bytes()]); print(machine.digest(), machine.full_digest())"
    )
    found = subprocess.run(
        [sys.executable, "-P", "-c", program, str(image)],
        env={**os.environ, "PYTHONPATH": str(unpacked(version, tmp_path))},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert found.split() == [digest, full_digest]
