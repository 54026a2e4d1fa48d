"""What commands print and where it goes: tables whole at any width, whole when piped, and an output that cannot be written."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from quorumq.api import tokens
from quorumq.cli.admin import members_table, status_table
from quorumq.cli.tables import laid_out, show
from tests.cli.conftest import Answering
from tests.cli.test_command import STATUS

LONG = "127.0.0.1:20001", "quorumq-0.quorumq-peers.default.svc.cluster.local:7790", "mailer-production-of-europe"


def command(*arguments: str, stdout: int | None = subprocess.PIPE, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the real command in a process of its own, in a terminal's width that is of no help."""
    environment = {**os.environ, "COLUMNS": "40", **more}
    return subprocess.run(
        [sys.executable, "-m", "quorumq", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )


def with_long_addresses() -> dict[str, object]:
    members = [{**member, "address": address} for member, address in zip(STATUS["members"], LONG, strict=True)]
    return STATUS | {"members": members, "digest": "d" * 64}


def test_what_is_piped_is_whole(node: tuple[type[Answering], str], tmp_path: Path) -> None:
    handler, url = node
    handler.body = json.dumps(with_long_addresses()).encode()
    found = command("status", "--url", url)
    assert (found.returncode, found.stderr) == (0, "")
    for whole in (*LONG, "d" * 64, "match index", "commit 41, applied 40, durable 42"):
        assert whole in found.stdout
    handler.body = json.dumps({"ok": True, "leader": "n1", **with_long_addresses()}).encode()
    assert LONG[1] in command("members", "list", "--url", url).stdout
    file = tmp_path / "tokens.jsonl"
    queues = [f"{LONG[2]}-{number}-*" for number in range(9)]
    tokens.change(file, lambda known: [tokens.make(LONG[2], tokens.RIGHTS, queues)[1]])
    listed = command("tokens", "list", "--file", str(file)).stdout
    assert " ".join(queues) in listed and " ".join(tokens.RIGHTS) in listed


@pytest.mark.parametrize("width", [30, 60, 80])
def test_what_is_narrow_folds_and_loses_nothing(width: int) -> None:
    console = Console(width=width)
    table = laid_out("t" * 70, ("name", "queues"), [LONG[1:]], after="a" * 70)
    with console.capture() as capture:
        console.print(table)
    lines = capture.get().splitlines()
    assert all(len(line) <= width for line in lines) and "…" not in capture.get()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert ["".join(column) for column in zip(*cells, strict=True)] == list(LONG[1:])
    assert "".join(lines).count("t" * min(width, 70)) and capture.get().count("a") >= 70


def test_tables_of_nodes_fold_too() -> None:
    for shown in (status_table(with_long_addresses()), members_table(STATUS["members"], "leader n2")):
        console = Console(width=50)
        with console.capture() as capture:
            console.print(shown)
        assert "…" not in capture.get()


def test_a_terminal_has_its_own_width(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stdout", written)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    show(laid_out("title", ("name",), [["x" * 100]]))
    assert max(len(line) for line in written.getvalue().splitlines()) < 80


@pytest.mark.parametrize("arguments", [["status"], ["members", "list"], ["tokens", "list"], ["--version"], ["--help"]])
def test_an_output_that_cannot_be_written_is_said_in_one_line(
    node: tuple[type[Answering], str], tmp_path: Path, arguments: list[str]
) -> None:
    handler, url = node
    handler.body = json.dumps(STATUS).encode()
    file = tmp_path / "tokens.jsonl"
    tokens.change(file, lambda known: [tokens.make("a", ["read"], ["*"])[1]])
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        found = command(*arguments, stdout=full, QUORUMQ_URL=url, AUTH_TOKENS_FILE=str(file))
    finally:
        os.close(full)
    assert (found.returncode, found.stderr) == (1, "quorumq: the output cannot be written: No space left on device\n")


def test_a_reader_that_has_gone_is_no_error_worth_a_word(node: tuple[type[Answering], str]) -> None:
    handler, url = node
    handler.body = json.dumps(STATUS).encode()
    reader, writer = os.pipe()
    os.close(reader)
    try:
        found = command("status", "--url", url, stdout=writer)
    finally:
        os.close(writer)
    assert found.stderr == ""


def test_a_token_that_nobody_can_read_is_not_made(tmp_path: Path) -> None:
    file = tmp_path / "tokens.jsonl"
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        found = command("tokens", "create", "a", "-r", "read", "--file", str(file), stdout=full)
    finally:
        os.close(full)
    assert found.returncode == 1
    assert found.stderr == "quorumq: the token cannot be printed, so there is none: No space left on device\n"
    assert tokens.read(file) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--right", ""], "give at least one of produce, consume"),
        (["--right", " , "], "give at least one of produce, consume"),
        (["--right", "read", "--queue", ""], "a queue needs a name"),
        (["--right", "read", "--queue", "a", "--queue", " "], "a queue needs a name"),
    ],
)
def test_an_option_that_says_nothing_is_to_blame_itself(tmp_path: Path, arguments: list[str], words: str) -> None:
    file = tmp_path / "tokens.jsonl"
    found = command("tokens", "create", "a", *arguments, "--file", str(file), COLUMNS="200")
    assert (found.returncode, found.stdout) == (2, "")
    assert words in found.stderr
    assert "Traceback" not in found.stderr and str(file) not in found.stderr
    assert not file.exists()


@pytest.mark.parametrize(
    "arguments",
    [["dev", "--nodes", "1_0"], ["dev", "--http-port", "\u0666790"], ["dev", "--nodes", "0"], ["dev", "--peer-port", "65536"],
     ["level", "raise", "1_0"], ["dev", "--bullmq-port", "80.0"]],
    ids=lambda one: " ".join(one),
)  # fmt: skip
def test_numbers_are_digits(arguments: list[str]) -> None:
    found = command(*arguments, COLUMNS="200")
    assert found.returncode == 2 and arguments[-1] in found.stderr
