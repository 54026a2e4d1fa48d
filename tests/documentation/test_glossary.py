"""The glossary holds each word once, what it names in the code is there, and words that went are in neither."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.support.source import parsed

ROOT = Path(__file__).parents[2]
MODULES = [path for package in ("cluster", "node", "api", "cli") for path in sorted((ROOT / package).rglob("*.py"))]
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in GLOSSARY.splitlines()
    if line.startswith("| ") and not line.startswith(("| ---", "| word"))
]
# Private words of earlier days, for which the field has usual ones.
GONE = {
    *(
        "births",
        "endings",
        "families",
        "places",
        "surroundings",
        "telling",
        "whole_queues",
        "lately",
        "line_up",
        "bury",
    ),
    *("come_first", "insist", "mention", "heed", "ring", "bear", "let_go_of", "meant", "lessen"),
    *("hear", "heard", "heard_of", "may_hear", "direct_heard", "told", "deaf", "hearing", "asking"),
}


def defined() -> set[str]:
    """Return the names of all classes, functions, attributes and parameters of the packages."""
    found: set[str] = set()
    for path in MODULES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.arg):
                found.add(node.arg)
            elif isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
    return found


NAMES = defined()


def test_each_word_stands_once_with_its_meaning() -> None:
    words = [word.strip() for row in ROWS for word in row[0].split(",")]
    assert len(words) > 60 and [word for word in sorted(set(words)) if words.count(word) > 1] == []
    assert [row[0] for row in ROWS if len(row) != 3 or not row[1]] == []


def test_what_it_names_is_in_the_code() -> None:
    named = [name for row in ROWS for name in re.findall(r"`(\w+)`", row[2])]
    assert len(named) > 60 and [name for name in named if name not in NAMES] == []


def test_words_that_went_are_in_neither() -> None:
    functions = {
        node.name
        for path in MODULES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert sorted(GONE & (functions | {path.stem for path in MODULES})) == []
    assert sorted(GONE & {word.strip() for row in ROWS for word in row[0].split(",")}) == []
