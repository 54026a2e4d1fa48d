"""What the documents point at is there: files, headings, scripts; and what CONTRIBUTING shows of the code is the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/DESIGN.md"), *ROOT.glob("tests/*/README.md")]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """Return the anchors of a document's headings, as the usual renderers make them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(path: Path) -> list[str]:
    found = []
    for link in LINK.findall(FENCE.sub("", path.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text("utf-8"))):
            found.append(link)
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    assert broken(path) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# One thing: `x`\n")
    (tmp_path / "a.md").write_text("[a](b.md) [b](b.md#one-thing-x) [c](c.md) [d](b.md#two) [e](https://example.com/)")
    assert broken(tmp_path / "a.md") == ["c.md", "b.md#two"]


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_scripts_and_folders_that_are_named_are_there(path: Path) -> None:
    named = set(re.findall(r"`((?:scripts|tests|node|api|docs|examples)/[\w./-]+)", path.read_text("utf-8")))
    assert len(named) >= 5
    assert [name for name in sorted(named) if not (ROOT / name).exists() and "NAME" not in name] == []


def test_what_contributing_shows_is_the_code() -> None:
    shown = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert shown
    # Laid out in another way, perhaps.
    routes = re.sub(r"\s|,(?=\s*\))", "", (ROOT / "api" / "dialects" / "bunqueue" / "jobs.py").read_text("utf-8"))
    assert all(re.sub(r"\s|,(?=\s*\))", "", code) in routes for code in shown)
