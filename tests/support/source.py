"""Our source as a tree, for tests that hold the code to a rule."""

from __future__ import annotations

import ast
import gc
from functools import cache
from pathlib import Path


@cache
def parsed(path: Path) -> ast.Module:
    """Return a source file's syntax tree; a path is read once, so nobody may change the tree.

    Without the collector: Python 3.11 counts the depth of a tree in one place per interpreter, so a tree made by a finalizer meanwhile
    (a traceback that is logged for a forgotten task makes one) fails the outer one with "AST constructor recursion depth mismatch".
    """
    text = path.read_text("utf-8")
    was_on = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(text)
    finally:
        if was_on:
            gc.enable()
