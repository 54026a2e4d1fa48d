"""The check of the lock files finds what would make an installation from them another one than pyproject.toml asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from scripts.tools.lock import BadLock, Metadata, check, read, troubles

ROOT = Path(__file__).parents[2]
HASH = "    --hash=sha256:" + "0" * 64 + "\n"
LOCK = f"# made by scripts/lock\nweb==3.1 \\\n{HASH}wire==1.0 \\\n{HASH}    # via web\nodd==1 ; sys_platform == 'win32' \\\n{HASH}"
KNOWN = {"web": Metadata("3.1", (Requirement("wire>=1"),)), "wire": Metadata("1.0", ())}


def found(lock: str = LOCK, *asked: str, known: dict[str, Metadata] = KNOWN) -> list[str]:
    return troubles([Requirement(text) for text in asked or ("web>=3,<4",)], read(lock), known.get)


def test_the_lock_files_of_this_checkout_are_up_to_date() -> None:
    assert check(ROOT) == []


def test_a_lock_that_fits_is_found_to_fit() -> None:
    assert found() == []


@pytest.mark.parametrize(
    ("lock", "asked", "what"),
    [
        (LOCK, "web>=4", "web is locked at 3.1, but pyproject.toml needs web>=4"),
        (LOCK.replace("wire==1.0", "wire==0.9"), "web>=3", "wire is locked at 0.9, but web needs wire>=1"),
        (LOCK.replace(f"wire==1.0 \\\n{HASH}    # via web\n", ""), "web>=3", "wire is missing, which web needs"),
        (LOCK + f"more==1 \\\n{HASH}", "web>=3", "more is locked, but nobody needs it"),
        (LOCK.replace("web==3.1", "web==3.2"), "web>=3", "web is locked at 3.2, but installed as 3.1"),
    ],
)
def test_what_does_not_fit_is_found(lock: str, asked: str, what: str) -> None:
    assert [text for text in found(lock, asked) if text.startswith(what)]


@pytest.mark.parametrize(
    "line", ["--index-url https://packages.example/simple", "web>=3", "-e .", "web @ https://packages.example/web.whl"]
)
def test_a_lock_names_exact_packages_and_no_place_to_get_them(line: str) -> None:
    with pytest.raises(BadLock, match="no place"):
        read(f"{LOCK}{line}\n")


def test_a_package_without_a_hash_is_refused() -> None:
    with pytest.raises(BadLock, match="wire without a hash"):
        read(LOCK.replace(f"wire==1.0 \\\n{HASH}", "wire==1.0\n"))


def test_both_lock_files_have_the_same_versions(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "requirements.lock", "requirements-dev.lock"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    dev = tmp_path / "requirements-dev.lock"
    text = dev.read_text("utf-8")
    version = read(text)["aiohttp"].version
    dev.write_text(text.replace(f"aiohttp=={version}", "aiohttp==3.10.0"), "utf-8")
    assert "aiohttp is not the same in requirements.lock and requirements-dev.lock" in check(tmp_path)
