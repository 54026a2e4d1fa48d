"""Earlier versions of the program, kept as wheels, to run beside this one."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

from tests.support.local_cluster import LocalNode

WHEELS = Path(__file__).parent.parent / "versions"
PREVIOUS = "0.1.0"


def unpacked(version: str, folder: Path) -> Path:
    """Unpack the wheel of a version below `folder`, unless it is there; return where its packages lie."""
    place = folder / version
    if not place.exists():
        with zipfile.ZipFile(WHEELS / f"quorumq-{version}-py3-none-any.whl") as wheel:
            wheel.extractall(place)
    return place


def run_previous(node: LocalNode, folder: Path) -> None:
    """Have `node` run the previous version from its next start on; its dependencies are this version's."""
    # Without the working directory on the path, which holds this version's folders under the same names.
    node.program = (sys.executable, "-P", "-m", "cli.main")
    node.settings = {**node.settings, "PYTHONPATH": str(unpacked(PREVIOUS, folder))}


def run_present(node: LocalNode) -> None:
    """Have `node` run this checkout again."""
    node.program = (sys.executable, "-m", "quorumq")
    node.settings = {name: value for name, value in node.settings.items() if name != "PYTHONPATH"}
