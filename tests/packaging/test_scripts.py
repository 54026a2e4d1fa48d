"""What the scripts install, and when: what running needs for a cluster, more for checks and tests, nothing a second time."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Stands for .venv/bin/python: writes down what it is asked to install, and fails if it is told to.
PYTHON = """#!/usr/bin/env bash
case "$*" in
    *--version*) exit 0 ;;
    *requirements*) echo "lock: ${!#}" >>"$LOG"; echo "Collecting aiohttp==1 (from x)"; exit "$FAILS" ;;
    *--editable*) echo "itself" >>"$LOG"; exit 0 ;;
esac
exit 9
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the scripts' first lines and an environment that does nothing."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "_venv", tmp_path / "scripts")
    # Most scripts end at the first thing that fails; scripts/check goes on, and asks.
    for kind, options, otherwise in (("run", "-euo", ""), ("dev", "-uo", " || exit 1")):
        script = tmp_path / "scripts" / kind
        source = f'source "$(dirname "$0")/_venv" {kind}{otherwise}'
        script.write_text(f"#!/usr/bin/env bash\nset {options} pipefail\n{source}\necho went on\n")
    for name in ("pyproject.toml", "requirements.lock", "requirements-dev.lock"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path


def start(checkout: Path, kind: str, *, fails: bool = False) -> tuple[list[str], str]:
    """Run a script; return what it installed and what it said."""
    log = checkout / "log"
    log.unlink(missing_ok=True)
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LOG": str(log), "FAILS": str(int(fails))}
    python = shutil.which("python3.11") or shutil.which("python3")
    assert python
    environment["PATH"] = f"{Path(python).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", str(checkout / "scripts" / kind)], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout == "went on\n") == (not fails) == (done.returncode == 0), done.stdout + done.stderr
    return log.read_text().splitlines() if log.exists() else [], done.stderr


RUN, DEV = ["lock: requirements.lock", "itself"], ["lock: requirements-dev.lock", "itself"]


def test_a_cluster_installs_what_running_needs_once_and_says_so(checkout: Path) -> None:
    installed, said = start(checkout, "run")
    assert installed == RUN
    assert "installing what running needs into .venv, once" in said and "  aiohttp==1\n" in said and "MB in all" in said
    assert start(checkout, "run") == ([], "")


def test_tests_install_more_and_a_cluster_then_nothing(checkout: Path) -> None:
    start(checkout, "run")
    assert start(checkout, "dev")[0] == DEV
    assert start(checkout, "run") == start(checkout, "dev") == ([], "")


@pytest.mark.parametrize("name", ["pyproject.toml", "requirements.lock"])
def test_what_has_changed_is_installed_anew(checkout: Path, name: str) -> None:
    start(checkout, "dev")
    with (checkout / name).open("a") as file:
        file.write("# changed\n")
    assert start(checkout, "run")[0] == RUN
    # The smaller lock may have taken the larger one apart.
    assert start(checkout, "dev")[0] == DEV


@pytest.mark.parametrize(("kind", "whole"), [("run", RUN), ("dev", DEV)])
def test_what_could_not_be_installed_ends_the_script_and_is_tried_again(
    checkout: Path, kind: str, whole: list[str]
) -> None:
    assert start(checkout, kind, fails=True)[0] == whole[:1]
    assert start(checkout, kind)[0] == whole


def test_every_script_says_what_it_needs() -> None:
    sourced = {
        path.name: text.partition('_venv" ')[2].split()[0]
        for path in (ROOT / "scripts").iterdir()
        if path.is_file() and 'BASH_SOURCE[0]}")/_venv"' in (text := path.read_text("utf-8"))
    }
    assert sourced["up"] == sourced["demo"] == sourced["bench"] == "run"
    assert sourced["check"] == sourced["test"] == "dev"
    assert set(sourced.values()) == {"run", "dev"}
