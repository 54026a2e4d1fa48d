"""`quorumq tokens`: what it prints, what it leaves in the file, and what it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from quorumq.api import tokens
from quorumq.api.auth import Access
from quorumq.cli.main import app
from quorumq.cli.tokens import moment

ROWS = ["name", "rights", "queues", "created", "expires"]


def run(file: Path | None, *arguments: str) -> tuple[int, str, str]:
    """Run the command; return its status and what it wrote on both outputs."""
    where = [] if file is None else ["--file", str(file)]
    result = CliRunner().invoke(app, ["tokens", *arguments, *where], env={"COLUMNS": "200", "AUTH_TOKENS_FILE": ""})
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.jsonl"


def test_a_token_is_printed_once_and_only_its_digest_is_kept(file: Path) -> None:
    status, output, said = run(file, "create", "mailer", "-r", "produce", "-r", "read", "-q", "mail-*", "-q", "news")
    assert status == 0
    secret = output.strip()
    assert re.fullmatch(r"qmq_[A-Za-z0-9_-]{43}", secret)
    assert secret not in said
    assert secret not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    (token,) = tokens.read(file)
    assert (token.name, token.rights, token.queues) == ("mailer", ("produce", "read"), ("mail-*", "news"))
    assert token.expires is None
    grant = Access((), file).find(secret)
    assert grant is not None
    assert grant.name == "mailer"
    assert grant.covers("mail-x")
    assert not grant.covers("other")


def test_rights_may_stand_in_one_text(file: Path) -> None:
    assert run(file, "create", "a", "--right", "produce, read,produce")[0] == 0
    assert tokens.read(file)[0].rights == ("produce", "read")
    assert tokens.read(file)[0].queues == ("*",)


def test_list_shows_everything_but_secrets(file: Path) -> None:
    secrets = [run(file, "create", name, "-r", "admin", "--expires", "30d")[1].strip() for name in ("a", "b")]
    status, output, _ = run(file, "list")
    assert status == 0
    assert "2 tokens" in output
    for heading in ROWS:
        assert heading in output
    ends = (datetime.now(UTC) + timedelta(days=30)).strftime("%Y-%m-%d")
    assert output.count(ends) == 2
    for secret in secrets:
        assert secret not in output
        assert tokens.digest(secret) not in output


def test_a_token_that_is_over_is_shown_so(file: Path) -> None:
    _, token = tokens.make("old", ["read"], ["*"], datetime(2026, 1, 1, tzinfo=UTC))
    tokens.change(file, lambda known: [token])
    assert "2026-01-01 00:00 (over)" in run(file, "list")[1]


def test_revoke(file: Path) -> None:
    kept, gone = [run(file, "create", name, "-r", "read")[1].strip() for name in ("kept", "gone")]
    status, _, said = run(file, "revoke", "gone")
    assert (status, said) == (0, "gone is revoked\n")
    access = Access((), file)
    assert access.find(kept) is not None
    assert access.find(gone) is None
    status, _, said = run(file, "revoke", "gone")
    assert (status, said) == (1, "quorumq: there is no token 'gone'\n")


def test_rotate(file: Path) -> None:
    before = run(file, "create", "a", "-r", "read", "-q", "mail-*", "--expires", "30d")[1].strip()
    run(file, "create", "b", "-r", "read")
    status, output, said = run(file, "rotate", "a")
    after = output.strip()
    assert status == 0 and after != before and after not in said
    access = Access((), file)
    grant = access.find(after)
    assert access.find(before) is None and grant is not None
    assert (grant.name, grant.queues, grant.may("read"), grant.ends_at is None) == ("a", ("mail-*",), True, False)
    assert {token.name for token in tokens.read(file)} == {"a", "b"}
    status, _, said = run(file, "rotate", "nobody")
    assert status == 1 and "there is no token 'nobody'" in said


def test_names_are_unique(file: Path) -> None:
    run(file, "create", "a", "-r", "read")
    before = file.read_bytes()
    status, output, said = run(file, "create", "a", "-r", "admin")
    assert (status, output) == (1, "")
    assert "already" in said
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "a"],
        ["create", "a b", "-r", "read"],
        ["create", "a", "-r", "root"],
        ["create", "a", "-r", ""],
        ["create", "a", "-r", "read", "--expires", "yesterday"],
        ["create", "a", "-r", "read", "--expires", "2020-01-01"],
        ["create", "a", "-r", "read", "--expires", "999999w"],
        ["create", "a", "-r", "read", "-q", ""],
    ],
)
def test_what_is_refused(file: Path, arguments: list[str]) -> None:
    status, output, said = run(file, *arguments)
    assert status in (1, 2)
    assert output == ""
    assert said
    assert not file.exists()


def test_a_broken_file_is_left_alone(file: Path) -> None:
    file.write_text("nonsense")
    for arguments in (["create", "a", "-r", "read"], ["list"], ["revoke", "a"]):
        status, _, said = run(file, *arguments)
        assert status == 1
        assert said == f"quorumq: {file} cannot be used: line 1 is no JSON object\n"
    assert file.read_text() == "nonsense"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    status, _, said = run(tmp_path / "none" / "tokens", "create", "a", "-r", "read")
    assert status == 1
    assert said.startswith("quorumq: ")
    assert "Traceback" not in said


def test_the_file_has_to_be_named() -> None:
    status, _, said = run(None, "list")
    assert status == 2
    assert "AUTH_TOKENS_FILE" in said


def test_commands_at_the_same_time_wait_for_each_other(file: Path) -> None:
    program = "from cli.main import app; app()"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, "tokens", "create", f"t{at}", "-r", "read", "--file", str(file)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for at in range(4)
    ]
    assert [process.wait(60) for process in started] == [0] * 4
    assert sorted(token.name for token in tokens.read(file)) == ["t0", "t1", "t2", "t3"]


@pytest.mark.parametrize(("text", "hours"), [("90m", 1.5), ("12h", 12), ("30d", 720), ("2w", 336)])
def test_lives(text: str, hours: float) -> None:
    left = moment(text) - datetime.now(UTC)
    assert abs(left - timedelta(hours=hours)) < timedelta(seconds=5)


def test_moments() -> None:
    assert moment("2999-01-31T12:00") == datetime(2999, 1, 31, 12, tzinfo=UTC)
    assert moment("2999-01-31T12:00+02:00") == datetime(2999, 1, 31, 10, tzinfo=UTC)
    for text in ("x", "0d", "1999-01-01", "30 d"):
        with pytest.raises(typer.BadParameter):
            moment(text)
