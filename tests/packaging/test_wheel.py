"""The wheel: what is in it, and that it runs beside distributions which own `cluster`, `node`, `api` and `cli`.

Nothing is asked of a package index: the run-time packages are copied from this environment, those of requirements.lock and no
others, so that one which is missing there is missing here. Only the installer is used from outside the fresh environment.
"""

from __future__ import annotations

import asyncio
import base64
import email
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from quorumq.cli.admin import fetch
from scripts.tools.lock import read
from tests.support.local_cluster import LocalCluster

ROOT = Path(__file__).parents[2]
PACKAGES = ("api", "cli", "cluster", "node")
# What is built from; the whole tree would bring this checkout's caches.
SOURCES = (*PACKAGES, "quorumq", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "MANIFEST.in")
BUILD = (
    "import sys, setuptools.build_meta as build; into = sys.argv[1]; build.build_sdist(into); build.build_wheel(into)"
)
# A module of ours in each package, which a stranger's distribution has, too.
SHARED_NAMES = {"api": "server", "cli": "main", "cluster": "engine", "node": "batching"}


def built(source: Path, into: Path) -> tuple[Path, Path]:
    """Build a source distribution and a wheel; return both."""
    into.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(into)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return next(into.glob("*.tar.gz")), next(into.glob("*.whl"))


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution and the wheel of this checkout."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "checkout"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source)
    return built(source, folder / "dist")


@pytest.fixture(scope="module")
def wheel(distributions: tuple[Path, Path]) -> Path:
    return distributions[1]


def content(path: Path) -> dict[str, bytes]:
    """Return the files of a wheel, without the installer's."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def metadata(path: Path) -> Any:
    found = content(path)
    return email.message_from_bytes(next(found[name] for name in found if name.endswith(".dist-info/METADATA")))


# -- What is in it -----------------------------------------------------------------------------------------------------


def test_a_wheel_has_the_packages_below_quorumq_and_nothing_else(wheel: Path) -> None:
    expected = {"quorumq/__init__.py", "quorumq/__main__.py", "quorumq/py.typed", "quorumq/api/dashboard/docs.html"}
    expected |= {f"quorumq/{path.relative_to(ROOT)}" for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    found = content(wheel)
    assert {name for name in found if ".dist-info/" not in name} == expected
    assert found["quorumq/cluster/raft.py"] == (ROOT / "cluster" / "raft.py").read_bytes()


def test_a_wheel_says_what_it_needs_and_under_which_licence(wheel: Path) -> None:
    said = metadata(wheel)
    assert said["License-Expression"] == "Apache-2.0"
    licence = next(data for name, data in content(wheel).items() if name.endswith("/licenses/LICENSE"))
    assert licence == (ROOT / "LICENSE").read_bytes() and b"Version 2.0, January 2004" in licence
    needed = [text for text in said.get_all("Requires-Dist") if "extra ==" not in text]
    assert {text.partition("=")[0].partition("<")[0].partition(">")[0] for text in needed} == {
        *(
            "aiohttp",
            "croniter",
            "msgpack",
            "msgspec",
            "pysyncobj",
            "rich",
            "sortedcontainers",
            "typer",
            "tzdata",
            "uvloop",
        )
    }
    # A release that may break us is not taken; tzdata's are tables alone.
    assert [text for text in needed if "<" not in text and "==" not in text] == ["tzdata>=2024.1"]


def test_a_wheel_made_from_the_source_distribution_is_the_same(
    distributions: tuple[Path, Path], tmp_path: Path
) -> None:
    """There the links of the checkout are folders."""
    source, wheel = distributions
    with tarfile.open(source) as archive:
        assert not [member.name for member in archive if member.issym() or member.islnk()]
        archive.extractall(tmp_path, filter="data")
    _, again = built(next(tmp_path.glob("quorumq-*")), tmp_path / "dist")
    assert content(again) == content(wheel)


# -- Installed beside others -------------------------------------------------------------------------------------------


def stranger(folder: Path, name: str) -> Path:
    """Make a wheel of a distribution that owns the top-level package `name`, with a module called as one of ours."""
    files = {
        f"{name}/__init__.py": f"OWNER = 'somebody else: {name}'\n",
        f"{name}/{SHARED_NAMES[name]}.py": "OWNER = 'somebody else'\n",
        f"{name}-9.9.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n",
        f"{name}-9.9.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {path: hashlib.sha256(text.encode()).digest() for path, text in files.items()}
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(digest).decode().rstrip('=')},{len(files[path])}\n"
        for path, digest in digests.items()
    )
    made = folder / f"{name}-9.9-py3-none-any.whl"
    with zipfile.ZipFile(made, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{name}-9.9.dist-info/RECORD", f"{record}{name}-9.9.dist-info/RECORD,,\n")
    return made


class Environment:
    """A fresh environment with the run-time packages of the lock file."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.bin = folder / "bin"
        [self.packages] = folder.glob("lib/python*/site-packages")
        for name, pin in read((ROOT / "requirements.lock").read_text("utf-8")).items():
            if pin.here:
                self.copy(name, pin.version)

    def copy(self, name: str, version: str) -> None:
        """Copy a package from this environment, its commands left out."""
        found = distribution(name)
        assert found.version == version, f"{name} is {found.version} here and {version} in the lock file"
        for file in found.files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                target = self.packages / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(found.locate_file(file), target)

    def pip(self, *arguments: str) -> str:
        # This environment's installer, on that environment; it may ask no index.
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "--disable-pip-version-check"]
        done = subprocess.run([*pip, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, *command: str, folder: Path) -> str:
        """Run a command of the environment, away from the checkout."""
        program = [str(self.bin / command[0]), *command[1:]]
        done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """One in which strangers own the four names; ours is installed between two of them, so that neither order is spared."""
    folder = tmp_path_factory.mktemp("fresh")
    made = Environment(folder / "venv")
    strangers = [str(stranger(folder, name)) for name in PACKAGES]
    for part in (strangers[:2], [str(wheel)], strangers[2:]):
        made.pip("install", "--quiet", "--no-index", "--no-deps", *part)
    yield made
    shutil.rmtree(folder)


def test_what_is_locked_is_all_that_is_needed(environment: Environment) -> None:
    assert "No broken requirements" in environment.pip("check")


@pytest.mark.parametrize("name", PACKAGES)
def test_strangers_keep_their_names(environment: Environment, name: str, tmp_path: Path) -> None:
    module = SHARED_NAMES[name]
    program = (
        f"import json, {name}.{module}, quorumq.{name}.{module} as ours, quorumq.cli.serve, sys; "
        f"print(json.dumps([{name}.OWNER, {name}.{module}.OWNER, ours.__file__, "
        "sorted(m for m in sys.modules if m.partition('.')[0] in ('api', 'cli', 'cluster', 'node'))]))"
    )
    whole, part, ours, loaded = json.loads(environment.run("python", "-c", program, folder=tmp_path))
    assert (whole, part) == (f"somebody else: {name}", "somebody else")
    assert ours == str(environment.packages / "quorumq" / name / f"{module}.py")
    # Nothing of ours came in by a stranger's name.
    assert loaded == [name, f"{name}.{module}"]


async def test_three_nodes_run_from_the_wheel(environment: Environment, tmp_path: Path) -> None:
    version = environment.run("quorumq", "--version", folder=tmp_path)
    assert version == environment.run("python", "-m", "quorumq", "--version", folder=tmp_path)
    assert version.startswith("quorumq ")
    async with asyncio.timeout(90):
        cluster = LocalCluster(3)
        for node in cluster.nodes:
            node.program = (str(environment.bin / "quorumq"),)
        async with cluster:
            urls = [node.url for node in cluster.nodes]
            body = {"jobId": "from-the-wheel", "data": {"n": 1}}
            status, answer = await asyncio.to_thread(fetch, f"{urls[0]}/queues/q/jobs", method="POST", body=body)
            assert (status, answer) == (200, {"ok": True, "id": "from-the-wheel"})
            _, pulled = await asyncio.to_thread(fetch, f"{urls[1]}/queues/q/jobs")
            assert pulled["job"]["data"] == {"n": 1}
            status, _ = await asyncio.to_thread(fetch, f"{urls[2]}/docs")
            assert status == 200
            shown = await asyncio.to_thread(environment.run, "quorumq", "status", "--url", urls[2], folder=tmp_path)
            assert "n1" in shown and "NO QUORUM" not in shown
