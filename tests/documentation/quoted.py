"""What docs/operations.md quotes, taken out of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

OPERATIONS = Path("docs/operations.md").read_text("utf-8")


def section(title: str) -> str:
    """Return the text below a heading, up to the next of its kind. Raises AssertionError when there is none."""
    found = OPERATIONS.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    assert found, f"docs/operations.md has no section {title!r}"
    return found


def rows(text: str) -> Iterator[list[str]]:
    """Read the rows of the tables in a text; of whole tables their heads, too."""
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def lines_of_the_log() -> Iterator[str]:
    """Every line that the table of what can go wrong quotes."""
    for said, *_ in list(rows(section("What can go wrong")))[1:]:
        yield from re.findall(r"`([^`]+)`", said)
