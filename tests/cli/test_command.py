"""The command line itself: help, version, exit statuses, log lines, and the table of `quorumq status`."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from quorumq.api.settings.loading import load
from quorumq.api.settings.rows import settings
from quorumq.cli.admin import NoAnswer, cluster_status, fetch, status_table
from quorumq.cli.dev import members, remove, write_settings
from quorumq.cli.logs import JsonFormatter, TextFormatter
from tests.cli.conftest import Answering, run

STATUS: dict[str, Any] = {
    "node_id": "n2",
    "cluster_id": "c-1",
    "role": "leader",
    "term": 7,
    "leader": "n2",
    "commit_index": 41,
    "applied_index": 40,
    "last_index": 42,
    "durable_index": 42,
    "first_index": 3,
    "has_quorum": True,
    "ready": True,
    "ready_reason": "",
    "digest": "abc",
    "level": 0,
    "level_known": 1,
    "snapshot_index": 0,
    "members": [
        {
            "id": "n1",
            "address": "h:1",
            "role": "unknown",
            "voter": True,
            "connected": False,
            "match_index": None,
            "lag": None,
            "version": None,
            "level": None,
            "self": False,
        },
        {
            "id": "n2",
            "address": "h:2",
            "role": "leader",
            "voter": True,
            "connected": True,
            "match_index": 42,
            "lag": 0,
            "version": "0.2.0",
            "level": 1,
            "self": True,
        },
        {
            "id": "n3",
            "address": "h:3",
            "role": "learner",
            "voter": False,
            "connected": True,
            "match_index": 40,
            "lag": 2,
            "version": "",
            "level": 0,
            "self": False,
            "clock_offset_ms": -3_600_012,
            "via": "n2",
        },
    ],
}


def test_version() -> None:
    assert run("--version") == (0, f"quorumq {version('quorumq')}\n", "")


def test_a_checkout_that_was_never_installed_has_a_version_too() -> None:
    program = (
        "import importlib.metadata as m\n"
        "def version(name): raise m.PackageNotFoundError(name)\n"
        "m.version = version\n"
        "from quorumq.cli.main import app\n"
        "app(['--version'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "quorumq 0\n", "")


def test_help_names_every_flag_and_no_secret() -> None:
    status, output, _ = run("serve", "--help")
    assert status == 0
    for row in settings():
        if row.flag:
            assert row.flag in output
    assert "--cluster-secret " not in output
    assert "--auth-tokens " not in output
    assert "--while-stdin" not in output


def test_settings_that_cannot_be_used_end_serve_with_status_2_and_one_line() -> None:
    status, output, error = run("serve", "--http-port", "many")
    assert (status, output) == (2, "")
    assert error.startswith("quorumq: HTTP_PORT 'many' (from the flag --http-port)")
    assert error.count("\n") == 1


def test_the_environment_names_the_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("no_such = 1")
    assert "'no_such'" in run("serve", CONFIG_FILE=str(file))[2]


def test_status_shows_members_as_the_asked_node_sees_them(node: tuple[type[Answering], str]) -> None:
    handler, url = node
    handler.body = json.dumps(STATUS).encode()
    status, output, _ = run("status", "--url", url, "--token", "t1")
    assert status == 0
    assert [asked[2] for asked in handler.asked] == ["Bearer t1"]
    rows = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]]
        for line in output.splitlines()
        if "h:" in line
    }
    assert rows == {
        "n1": ["h:1", "unknown", "yes", "NO", "-", "-", "-", "-"],
        "n2": ["h:2", "leader", "yes", "itself", "42", "0", "0.2.0", "-"],
        "n3": ["h:3", "learner", "no", "via n2", "40", "2", "before 0.2.0", "-3600.012 s"],
    }
    assert "term 7, leader n2" in output
    assert "feature level 0, n2 knows levels up to 1" in output
    assert "commit 41" in output


def test_status_says_when_there_is_no_quorum() -> None:
    console = Console(width=200)
    lost = STATUS | {"has_quorum": False, "ready": False, "ready_reason": "no leader", "leader": None}
    with console.capture() as capture:
        console.print(status_table(lost))
    assert "NO QUORUM; not ready: no leader" in capture.get()
    assert "leader none" in capture.get()


@pytest.mark.parametrize(
    ("leader", "has_quorum", "shown"),
    [
        ("n2", True, "leader n2"),
        ("n1", True, "leader unknown (it was n1)"),
        ("n2", False, "leader unknown (it was n2)"),
        ("n1", False, "leader unknown (it was n1)"),
        ("n9", True, "leader unknown (it was n9)"),
        (None, True, "leader none"),
    ],
)
def test_status_calls_no_node_the_leader_that_may_be_dead(leader: str | None, has_quorum: bool, shown: str) -> None:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(status_table(STATUS | {"leader": leader, "has_quorum": has_quorum}))
    assert capture.get().splitlines()[0].strip() == f"cluster c-1, term 7, {shown}"


def test_status_says_whose_state_differs() -> None:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(status_table(STATUS | {"apart": "", "differing": ["n1", "n3"]}))
        console.print(
            status_table(STATUS | {"apart": "its state differs from that of n1, n3", "differing": ["n1", "n3"]})
        )
    assert "DIFFERS FROM n1, n3" in capture.get()
    assert "NOT TO BE TRUSTED: its state differs from that of n1, n3" in " ".join(capture.get().split())


def test_status_of_a_node_that_refuses_or_is_not_there(node: tuple[type[Answering], str]) -> None:
    handler, url = node
    handler.status, handler.body = 401, b'{"ok":false,"error":"Unauthorized"}'
    status, output, error = run("status", "--url", url)
    words = "Unauthorized (give a token by --token or QUORUMQ_TOKEN)"
    assert (status, output, error) == (1, "", f"quorumq: {url} answered 401: {words}\n")
    with pytest.raises(NoAnswer, match="does not answer"):
        fetch("http://127.0.0.1:1/ready")
    handler.status, handler.body = 200, b"OK"
    with pytest.raises(NoAnswer, match="answered 200"):
        cluster_status(url)


def record(message: str, **extra: Any) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "cluster.engine", "levelname": "INFO", "msg": message, "created": 1.5})
    vars(made).update(extra)
    return made


def test_log_lines_as_text_and_as_json() -> None:
    line = record("became leader", term=3)
    assert TextFormatter("n1").format(line) == "1970-01-01T00:00:01.500Z INFO n1 cluster.engine: became leader term=3"
    assert json.loads(JsonFormatter("n1").format(line)) == {
        "time": "1970-01-01T00:00:01.500Z",
        "level": "info",
        "node": "n1",
        "logger": "cluster.engine",
        "message": "became leader",
        "term": 3,
    }


def test_a_json_log_line_stays_one_line_with_a_traceback() -> None:
    line = record("two\nlines")
    try:
        raise ValueError("why\nindeed")
    except ValueError as error:
        line.exc_info = (type(error), error, error.__traceback__)
    text = JsonFormatter("n1").format(line)
    assert "\n" not in text
    assert "ValueError: why" in json.loads(text)["traceback"]


def test_each_node_of_dev_has_a_settings_file_that_serve_accepts(tmp_path: Path) -> None:
    cluster = members(3, tmp_path, 6790, 8080, 7790)
    write_settings(cluster)
    for number, member in enumerate(cluster):
        config = load({}, {}, member.settings_file)
        assert (config.node_id, config.http_port, config.bullmq_port) == (
            f"n{number + 1}",
            6790 + number,
            8080 + number,
        )
        assert config.cluster().listen == f"127.0.0.1:{7790 + number}"
        assert list(config.peers) == ["n1", "n2", "n3"]
        assert config.data_path == (tmp_path / member.id).resolve()


def test_fresh_removes_the_nodes_and_nothing_else(tmp_path: Path) -> None:
    cluster = members(2, tmp_path, 6790, 8080, 7790)
    write_settings(cluster)
    for member in cluster:
        member.data.mkdir()
        (member.data / "log").write_text("x")
        member.log.write_text("x")
    (tmp_path / "n3").mkdir()
    (tmp_path / "notes.log").write_text("mine")
    remove(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n3", "notes.log"]


def test_an_address_may_lack_its_scheme_and_a_wrong_one_is_told(node: tuple[type[Answering], str]) -> None:
    handler, url = node
    handler.body = json.dumps(STATUS).encode()
    assert run("status", "--url", url.removeprefix("http://"))[0] == 0
    handler.status, handler.body = 404, b"Not found"
    status, _, error = run("status", "--url", url)
    assert status == 1
    assert error.startswith(f"quorumq: {url} answered 404: this is not the HTTP port (HTTP_PORT")
    for wrong, words in (("ftp://h", "must begin with http://"), ("", "no host"), ("http://127.0.0.1:1", "refused")):
        status, _, error = run("status", "--url", wrong)
        assert (status, error.count("\n")) == (1, 1)
        assert words in error
        assert "Errno" not in error


def test_what_does_not_speak_http_is_said_to(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                    connection.recv(1000)

        thread = threading.Thread(target=greet)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        for command in (("status",), ("backup", "-o", str(tmp_path / "image"))):
            status, _, error = run(*command, "--url", url)
            assert (status, error.count("\n")) == (1, 1)
            assert "what answers does not speak HTTP" in error
        thread.join()


def test_status_before_there_is_a_cluster() -> None:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(status_table(STATUS | {"cluster_id": ""}))
    assert "cluster not founded yet, term 7" in capture.get()
