"""How tables are shown: whole, whatever the width. What is narrow folds, what is piped is as wide as it has to be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

# What draws is imported where something is drawn: a node draws nothing, and is up a tenth sooner.
if TYPE_CHECKING:
    from rich.console import Group, RenderableType

# Wider than any table; only measured with.
WIDE = 1_000_000


def laid_out(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[str] = (), after: str = ""
) -> Group:
    """Lay out rows under headings, with a line before and lines after. numbers: headings of columns of numbers."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for heading in headings:
        table.add_column(heading, justify="right" if heading in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    parts: list[RenderableType] = [Text(title, style="italic", overflow="fold"), table]
    return Group(*parts, *([Text(after, style="dim", overflow="fold")] if after else []))


def show(shown: RenderableType) -> None:
    """Print something: at a terminal in its width, else in its own, since whoever reads it looks for whole words."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    if not console.is_terminal:
        wide = Console(width=WIDE)
        console = Console(width=max(1, Measurement.get(wide, wide.options, shown).maximum))
    console.print(shown)
