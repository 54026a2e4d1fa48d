"""The main job of the product, as scripts/demo runs it: every file of the standard library, and the leader killed."""

from __future__ import annotations

import pytest

from scripts.tools import demo


async def test_every_file_has_exactly_one_right_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert await demo.demo(nodes=3) == 0
    count = f"{len(demo.library_files()):,}"
    assert len(demo.library_files()) > 1000
    assert capsys.readouterr().out.splitlines()[-1] == f"{count} of {count} files correct"
