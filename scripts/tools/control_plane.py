"""The programs of a Kubernetes control plane, for tests of the chart on a real one: where they are, and building them once.

They are kube-apiserver, kube-controller-manager and kube-scheduler of the version that Debian 12 has the source of, which comes with
all that it needs. QUORUMQ_CONTROL_PLANE names a folder that has them; else it is a cache of the user, which `scripts/kubernetes build`
fills: about ten minutes on two cores, and 3 GB meanwhile. etcd may be in that folder or on the path.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from scripts.tools.kubernetes import Unavailable

VERSION = "1.20.2"
SOURCE = "kubernetes=1.20.5+really1.20.2-1.1+deb12u1"
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
# What the build takes, by the packages that have it.
TOOLS = {"go": "golang-go", "make": "make", "rsync": "rsync", "patch": "patch", "gcc": "gcc", "apt-get": "apt"}
LISTS = Path("/etc/apt/sources.list.d")


def cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "quorumq" / f"control-plane-{VERSION}"


def programs() -> Path:
    """Return the folder of the programs. Raises Unavailable."""
    given = os.environ.get("QUORUMQ_CONTROL_PLANE")
    folder = Path(given) if given else cache()
    if lacking := [name for name in PROGRAMS if not os.access(folder / name, os.X_OK)]:
        how = (
            "which QUORUMQ_CONTROL_PLANE names"
            if given
            else "`scripts/kubernetes build` makes it, once, in about ten minutes"
        )
        raise Unavailable(f"there is no {lacking[0]} in {folder}: {how}")
    if not os.access(folder / "etcd", os.X_OK) and shutil.which("etcd") is None:
        raise Unavailable(f"there is no etcd, neither in {folder} nor on the path (Debian: etcd-server)")
    return folder


def build() -> Path:
    """Build the programs into the cache, unless they are there; return it. Raises Unavailable."""
    kept = cache()
    if all(os.access(kept / name, os.X_OK) for name in PROGRAMS):
        return kept
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            raise Unavailable(f"there is no `{tool}` (Debian: {package})")
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept, prefix="build-") as name:
        source = fetched(Path(name))
        for program in PROGRAMS:
            made(source, program)
            # Whole or not at all.
            shutil.copy2(source / "_output" / "bin" / program, kept / f"{program}.part")
            (kept / f"{program}.part").chmod(0o755)
            (kept / f"{program}.part").replace(kept / program)
    return kept


def fetched(folder: Path) -> Path:
    """Fetch the source by apt, of whatever mirror this machine uses, and unpack it; return its folder. Raises Unavailable."""
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / "apt" / part).mkdir(parents=True)
    (folder / "apt" / "all.sources").write_text(sources())
    (folder / "apt" / "conf").write_text(
        f'Dir::Etc::sourcelist "{folder}/apt/all.sources";\nDir::Etc::sourceparts "/dev/null";\n'
        f'Dir::State::lists "{folder}/apt/lists";\nDir::Cache "{folder}/apt/cache";\n'
    )
    apt = {"APT_CONFIG": str(folder / "apt" / "conf")}
    step("the list of sources", ["apt-get", "update", "-q"], folder, apt)
    step("the source", ["apt-get", "source", "-q", "--download-only", SOURCE], folder, apt)
    (archive,) = folder.glob("kubernetes_*orig.tar.gz")
    (changes,) = folder.glob("kubernetes_*debian.tar.xz")
    step("unpacking", ["tar", "xzf", str(archive)], folder, {})
    step("unpacking", ["tar", "xJf", str(changes)], folder, {})
    (source,) = [one for one in folder.iterdir() if one.name.startswith("kubernetes-")]
    for line in (folder / "debian" / "patches" / "series").read_text().splitlines():
        if line and not line.startswith("#"):
            with (folder / "debian" / "patches" / line.split()[0]).open() as patch:
                subprocess.run(["patch", "-p1", "-s"], cwd=source, stdin=patch, check=True)
    return source


def sources() -> str:
    """Return where this machine has Debian's packages from, for their sources."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', Path("/etc/os-release").read_text(), re.MULTILINE))
    name = release.get("VERSION_CODENAME", "")
    found = []
    for path in sorted(LISTS.glob("*.sources")):
        for part in path.read_text().split("\n\n"):
            suites = re.search(r"^Suites:(.*)$", part, re.MULTILINE)
            if suites and suites[1].split() and suites[1].split()[0].partition("-")[0] == name:
                found.append(re.sub(r"^Types:.*$", "Types: deb-src", part, flags=re.MULTILINE).strip())
    if not found:
        raise Unavailable(f"no list of Debian's packages is in {LISTS}")
    return "\n\n".join(found) + "\n"


def made(source: Path, program: str) -> None:
    """Compile one program."""
    (source / ".go" / "src" / "k8s.io").mkdir(parents=True, exist_ok=True)
    link = source / ".go" / "src" / "k8s.io" / "kubernetes"
    if not link.is_symlink():
        link.symlink_to(source)
    home = source / ".home"
    home.mkdir(exist_ok=True)
    own = {
        "HOME": str(home),
        "GOPATH": str(source / ".go"),
        "CGO_ENABLED": "0",
        "GO111MODULE": "off",
        "GOFLAGS": "",
        "KUBE_GIT_VERSION": f"v{VERSION}",
        "KUBE_GIT_TREE_STATE": "clean",
        "KUBE_GIT_COMMIT": "debian",
    }
    step(program, ["make", f"WHAT=cmd/{program}"], source, own)


def step(what: str, command: list[str], folder: Path, variables: dict[str, str]) -> None:
    """Do a part of the building, and say so. Raises Unavailable with the end of what was said."""
    print(f"{what} …", flush=True)
    done = subprocess.run(
        command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise Unavailable(f"{what}: {' '.join(command)} failed:\n{said}")
