"""Reading our source for a rule does not depend on what the collector finds meanwhile."""

from __future__ import annotations

import ast
import gc
from pathlib import Path

from tests.support.source import parsed

LARGEST = max((Path(__file__).parents[2] / "node").rglob("*.py"), key=lambda path: path.stat().st_size)


class ParsesAtItsEnd:
    """Garbage whose finalizer makes a tree too, as the traceback of a forgotten task does, and leaves another such behind."""

    left = 0

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        deeper(20)
        if ParsesAtItsEnd.left:
            ParsesAtItsEnd.left -= 1
            ParsesAtItsEnd()


def deeper(calls: int) -> None:
    if calls:
        deeper(calls - 1)
    else:
        ast.parse("a + b")


def test_a_tree_made_by_a_finalizer_meanwhile_harms_none() -> None:
    before = gc.get_threshold()
    parsed.cache_clear()
    ParsesAtItsEnd.left = 1000
    ParsesAtItsEnd()
    gc.set_threshold(50)
    try:
        parsed(LARGEST)
    finally:
        ParsesAtItsEnd.left = 0
        gc.set_threshold(*before)
    assert gc.isenabled()
