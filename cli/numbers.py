"""Numbers of the command line: digits, as in settings, and not all that Python takes for a number."""

from __future__ import annotations

import re
from collections.abc import Callable

import typer

DIGITS = re.compile(r"-?[0-9]{1,30}")


def whole(low: int, high: int) -> Callable[[str | int], int]:
    """Return what reads a whole number within bounds, both included; `1_0` and digits of other scripts are none."""

    def parse(text: str | int) -> int:
        if not DIGITS.fullmatch(str(text)):
            raise typer.BadParameter(f"{text!r} is not a whole number")
        number = int(text)
        if not low <= number <= high:
            raise typer.BadParameter(f"{number} is not in the range {low} to {high}")
        return number

    return parse
