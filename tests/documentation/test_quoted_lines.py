"""Every line of the log that docs/operations.md quotes is one that the program writes: it stands in a text of its source.

What varies in a line is written … there; so is it in a text of the source, wherever something is put into it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from quorumq.api.mounts import main_dialects
from tests.documentation.quoted import OPERATIONS, lines_of_the_log, section
from tests.support.source import parsed

# Worded by OpenSSL; tests/cluster/test_documented_lines.py has them said.
OF_THE_LIBRARY = {
    "TLS: certificate has expired",
    "TLS: unable to get local issuer certificate",
    "TLS: self-signed certificate in certificate chain",
    "TLS: wrong version number",
}


def texts() -> Iterator[str]:
    """Every text of the shipped program, with … for what is put into it."""
    for package in ("api", "cli", "cluster", "node"):
        for file in Path(package).rglob("*.py"):
            for found in ast.walk(parsed(file)):
                if isinstance(found, ast.Constant) and isinstance(found.value, str):
                    yield re.sub(r"%[-+ #0]*\d*(?:\.\d+)?[sdrf]", "…", found.value)
                elif isinstance(found, ast.JoinedStr):
                    yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in found.values)


TEXTS = sorted(set(texts()), key=len)


def is_written(line: str) -> bool:
    """Say whether some text of the source, or several of which one is put into the other, can come out as a line.

    Fragments between … have to follow each other in one text; or each has to be in one by itself, what stands in brackets too, and
    the first word may be what is put in.
    """
    if is_in_one(line):
        return True
    fragments = [part for one in re.split(r"…| \(|: ", line) if (part := one.strip(" ,:()"))]
    return all(is_in_one(part) or (" " in part and is_in_one(part.partition(" ")[2])) for part in fragments)


def is_in_one(line: str) -> bool:
    """Say whether a line can come out of one text."""
    # A node's name in an example stands for whichever.
    fragments = [one.strip() for one in re.split(r"…|\bn\d\b", line) if one.strip(" ,:()")]
    wanted = re.compile(".*".join(map(re.escape, fragments)), re.DOTALL)
    return any(wanted.search(text) for text in TEXTS)


@pytest.mark.parametrize("line", sorted(set(lines_of_the_log()) - OF_THE_LIBRARY))
def test_a_quoted_line_can_be_written(line: str) -> None:
    # `not ready: ` stands before every reason, so that the reasons are texts of their own.
    assert is_written(line.removeprefix("not ready: ")), line


def test_what_the_library_says_is_quoted() -> None:
    assert set(lines_of_the_log()) >= OF_THE_LIBRARY


@pytest.mark.parametrize(
    "line",
    ["refused, without a line each", "refused", "administered", "CANNOT WRITE ITS LOG since …", "ready", "not ready"],
)
def test_lines_that_are_quoted_elsewhere(line: str) -> None:
    assert line.strip(" …") in OPERATIONS and is_written(line)


def test_a_line_that_nobody_writes_is_found_out() -> None:
    assert not is_written("the cluster has gone for a walk")
    assert not is_written("refused n3 at …: it does not like our secret")
    assert section("What can go wrong").count("\n| `") > 15


def test_what_a_token_for_some_queues_may_not_ask_is_listed() -> None:
    """Every request that is about all queues, and no other; of the administration, what is about one queue is none of it."""
    told = section("Tokens").partition("* What is about all queues (")[2].partition(")")[0]
    listed = set(re.findall(r"`(/[^`]*)`", told))
    about_all = {
        f"{prefix}{route.path}"
        for dialect, prefix in main_dialects()
        for route in dialect.routes
        if route.right not in ("open", "job") and route.touches == "every"
    }
    administration = {path for path in about_all if path.startswith("/admin")}
    # BullMQ's list of push workers is of one dialect; the others are bunqueue's.
    assert about_all - administration - {"/bullmq/workers"} == listed
    assert administration and not any("{queue}" in path for path in administration)
