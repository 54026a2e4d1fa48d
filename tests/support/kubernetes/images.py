"""This checkout, and earlier versions, as images for pods: what the Dockerfile says of them, and a folder in place of its layers."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from tests.support.kubernetes.processes import PATH, Image
from tests.support.versions import unpacked

ROOT = Path(__file__).parents[3]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"


def program(folder: Path, name: str, line: str) -> None:
    """Write a program of one line."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f'#!/bin/sh\nexec {line} "$@"\n')
    (folder / name).chmod(0o755)


def image(folder: Path, line: str, *folders: Path) -> Image:
    """Return an image in which `quorumq` is this command."""
    text = DOCKERFILE.read_text().rpartition("\nFROM ")[2]
    said = dict(re.findall(r"^(ENTRYPOINT|CMD) (\[.*\])$", text, re.MULTILINE))
    (variables,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    (workdir,) = re.findall(r"^WORKDIR (.*)$", text, re.MULTILINE)
    bin_folder = folder / "bin"
    program(bin_folder, "quorumq", line)
    program(bin_folder, "python", sys.executable)
    held = {one.partition("=")[0]: one.partition("=")[2] for one in variables.replace("\\\n", " ").split()}
    return Image(
        entrypoint=json.loads(said["ENTRYPOINT"]),
        command=json.loads(said["CMD"]),
        variables=held | {"PATH": f"{bin_folder}:{PATH}"},
        folders=sorted({str(one) for one in (bin_folder, ROOT, Path(sys.prefix), Path(sys.base_prefix), *folders)}),
        workdir=workdir,
    )


def present(folder: Path) -> Image:
    """This checkout."""
    return image(folder / "present", f"{sys.executable} -m quorumq")


def previous(folder: Path, version: str) -> Image:
    """An earlier version, with this one's dependencies."""
    place = unpacked(version, folder)
    return image(folder / f"image-{version}", f"env PYTHONPATH={place} {sys.executable} -P -m cli.main", place)
