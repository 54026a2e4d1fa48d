"""The table of settings: where values come from, what is refused and in which words, what is never shown."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from quorumq.api.settings.loading import load
from quorumq.api.settings.rows import NodeConfig, settings
from quorumq.api.settings.table import Setting, SettingError
from quorumq.cluster.config import ClusterConfig
from scripts.tools.generate import FILES

THREE = "n1=127.0.0.1:7790,n2=127.0.0.1:7791,n3=127.0.0.1:7792"


def setting(key: str) -> Setting:
    return next(row for row in settings() if row.key == key)


def refusal(
    flags: dict[str, str] | None = None, environment: dict[str, str] | None = None, file: Path | None = None
) -> str:
    with pytest.raises(SettingError) as caught:
        load(flags or {}, environment or {}, file)
    return str(caught.value)


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("http_port = 1\nwrite_timeout_ms = 200\nlog_level = 'debug'\n")
    environment = {"HTTP_PORT": "2", "WRITE_TIMEOUT_MS": "300"}
    config = load({"http_port": "3", "write_timeout_ms": None}, environment, file)
    assert (config.http_port, config.write_timeout_ms, config.log_level) == (3, 300, "debug")
    assert config.body_bytes_max == NodeConfig().body_bytes_max


def test_an_empty_variable_is_as_good_as_none() -> None:
    assert load({}, {"HTTP_PORT": "", "AUTH_TOKENS": ""}) == NodeConfig()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"HTTP_PORT": "abc"}, ["HTTP_PORT 'abc' (from the environment)", "whole number"]),
        ({"HTTP_PORT": "65536"}, ["HTTP_PORT", "at most 65535"]),
        ({"BODY_BYTES_MAX": "1"}, ["BODY_BYTES_MAX", "at least 1024"]),
        ({"LOG_FORMAT": "xml"}, ["LOG_FORMAT 'xml'", "text, json"]),
        ({"PEERS": "n1=host"}, ["PEERS", "'host' is not an address"]),
        ({"PEERS": "n1"}, ["PEERS", "id=host:port"]),
        ({"PEERS": "n1=h:1,n1=h:2"}, ["PEERS", "node id 'n1' more than once"]),
        ({"PEERS": "n1=h:1,n2=h:1"}, ["PEERS", "address 'h:1' more than once"]),
        ({"PEERS": "n 1=h:1"}, ["PEERS", "'n 1'"]),
        ({"NODE_ID": "n9", "PEERS": THREE}, ["NODE_ID 'n9'", "PEERS", "n1, n2, n3"]),
        ({"NODE_ID": "../n1"}, ["NODE_ID", "../n1"]),
        ({"ELECTION_MIN_MS": "300"}, ["ELECTION_MIN_MS", "HEARTBEAT_MS"]),
        ({"ELECTION_MAX_MS": "600"}, ["ELECTION_MAX_MS", "ELECTION_MIN_MS"]),
        ({"WORKER_ENDPOINTS": "public,10.0.0.0/40"}, ["WORKER_ENDPOINTS", "10.0.0.0/40", "a network"]),
        ({"WORKER_LOCK_MS": "1"}, ["WORKER_LOCK_MS", "at least 500"]),
        ({"LOG_LEVEL": "loud"}, ["LOG_LEVEL 'loud'", "debug, info"]),
        ({"METRICS_AUTH": "yes"}, ["METRICS_AUTH 'yes'", "false, true"]),
        ({"CORS_ALLOW_ORIGIN": "a\nX-Other: b"}, ["CORS_ALLOW_ORIGIN", "one line"]),
        ({"CLOCK": "wall"}, ["CLOCK 'wall'", "log, clients"]),
        ({"CLOCK": "clients", "PEERS": THREE}, ["CLOCK=clients", "one node alone", "PEERS"]),
        (
            {"CLOCK": "clients", "PEERS_DNS": "nodes", "CLUSTER_SIZE": "1", "CLUSTER_SECRET": "s"},
            ["CLOCK=clients", "PEERS_DNS"],
        ),
        ({"HTTP_PORT": "8080"}, ["HTTP_PORT and BULLMQ_PORT are both 8080"]),
        ({"HTTP_PORT": "7790"}, ["HTTP_PORT and the peer port are both 7790"]),
        ({"BULLMQ_PORT": "7791", "NODE_ID": "n2", "PEERS": THREE}, ["BULLMQ_PORT and the peer port are both 7791"]),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_name(environment: dict[str, str], words: list[str]) -> None:
    message = refusal(environment=environment)
    assert all(word in message for word in words), message
    assert "\n" not in message


def bad_values(row: Setting) -> list[str]:
    """Values that a setting cannot have, whatever it is: as a flag or a variable says them."""
    about, kind = row.about, row.type_name
    if kind.startswith("whole number"):
        outside = [str(bound) for bound in (None if about.low is None else about.low - 1,) if bound is not None]
        beyond = [] if about.high is None else [str(about.high + 1)]
        return ["x", "1_0", "1.5", "\u0663", "0x10", " ", "9" * 40, *outside, *beyond]
    if kind == "path":
        return ["a\nb", " "]
    if kind in ("text", "list") or kind.startswith("id="):
        return ["a\x00b"] if not about.secret or kind == "list" else []
    return ["zzz", "1", " "]


@pytest.mark.parametrize("row", settings(), ids=lambda row: row.key)
def test_whatever_cannot_be_used_names_its_setting_and_where_it_came_from(tmp_path: Path, row: Setting) -> None:
    """The rule of docs/configuration.md, for every row."""
    file = tmp_path / "node.toml"
    for bad in bad_values(row):
        sources: list[tuple[str, str]] = [(refusal(environment={row.env: bad}), "from the environment")]
        if row.flag:
            sources.append((refusal({row.key: bad}), f"from the flag {row.flag}"))
        file.write_text(f"{row.key} = {json.dumps(bad)}", "utf-8")
        sources.append((refusal(file=file), f"from {file}"))
        for message, origin in sources:
            given = "" if row.about.secret else f" {bad!r}"
            assert message.startswith(f"{row.env}{given} ({origin}) "), message
            assert not row.about.secret or bad not in message
    file.write_text(f"{row.key} = 1979-05-27")
    assert refusal(file=file).startswith(row.env)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("host", "", "must be an address or a host name"),
        ("host", "a b", "must be an address or a host name"),
        ("host", "http://h", "must be an address or a host name"),
        ("node_id", "", "cannot be used: letters"),
        ("cluster_name", "", "must not be empty"),
        ("peers", "n1=???:7790", "'???:7790' is not an address"),
        ("peers", "n1=h:\u0663", "is not an address"),
        ("peers_dns", "???/99", "must be host:port, and '???/99' is not"),
        ("advertise", "h h", "must be host:port, and 'h h' is not"),
        ("trusted_proxies", "10.0.0.0/8,nobody", "must be addresses or networks, and 'nobody' is none"),
        ("worker_endpoints", "10.0.0.0/40", "'10.0.0.0/40' is none of any, public, "),
    ],
)
def test_what_a_type_cannot_say_is_refused_with_its_origin(tmp_path: Path, key: str, value: str, words: str) -> None:
    file = tmp_path / "node.toml"
    file.write_text(f"{key} = {json.dumps(value)}", "utf-8")
    sources = [(refusal({key: value}), f"from the flag {setting(key).flag}"), (refusal(file=file), f"from {file}")]
    if value:
        sources.append((refusal(environment={key.upper(): value}), "from the environment"))
    for message, origin in sources:
        assert message.startswith(f"{key.upper()} {value!r} ({origin}) ")
        assert words in message


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "::1", "fe80::1%eth0", "localhost", "node-1.example", "under_score", "h."]
)
def test_hosts_that_can_be_used(host: str) -> None:
    assert load({"host": host}, {}).host == host


def test_what_does_not_fit_together_says_where_each_came_from(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("peers_dns = ['h']\ncluster_secret = 'hunter2'\n")
    found = refusal({"http_port": "8080"})
    assert found.endswith("(HTTP_PORT from the flag --http-port; BULLMQ_PORT by default)")
    assert refusal({"peers": "n1=h:1"}, {}, file).endswith(f"(PEERS from the flag --peers; PEERS_DNS from {file})")
    secret = refusal({}, {"CLUSTER_SECRET_FILE": "/x"}, file)
    assert secret.endswith(f"(CLUSTER_SECRET from {file}; CLUSTER_SECRET_FILE from the environment)")
    assert "hunter2" not in secret
    outsider = refusal({"node_id": "n2"}, {"PEERS": "n1=h:1", "CLUSTER_SECRET": "hunter2"})
    assert outsider.endswith("(NODE_ID from the flag --node-id; PEERS from the environment)")
    election = refusal({}, {"ELECTION_MIN_MS": "300"})
    assert election.endswith("(HEARTBEAT_MS by default; ELECTION_MIN_MS from the environment)")


def test_files_that_cannot_be_used_are_named_before_anything_starts(tmp_path: Path) -> None:
    keys = ("peer_tls_cert", "peer_tls_key", "peer_tls_ca")
    files = {key: str(tmp_path / key) for key in keys}
    for key in keys:
        message = refusal(dict(files))
        assert (
            message
            == f"{key.upper()} '{files[key]}' (from the flag {setting(key).flag}) cannot be read: No such file or directory"
        )
        Path(files[key]).write_text("no PEM")
    broken = refusal({key: files[key] for key in keys[:2]}, {"PEER_TLS_CA": files["peer_tls_ca"]})
    assert "PEER_TLS_CERT" in broken and "cannot be used" in broken
    assert broken.endswith("(PEER_TLS_CERT from the flag --peer-tls-cert; PEER_TLS_KEY from the flag --peer-tls-key)")
    missing = refusal({"cluster_secret_file": str(tmp_path / "none")})
    assert missing.startswith(
        f"CLUSTER_SECRET_FILE '{tmp_path / 'none'}' (from the flag --cluster-secret-file) cannot be read"
    )
    assert "is not a folder" in refusal({"data_path": files["peer_tls_ca"]})


def test_a_leader_is_as_patient_as_those_who_would_stand_for_election() -> None:
    assert load({}, {}).cluster().quorum_loss_ms == 900
    patient = load({}, {"ELECTION_MIN_MS": "4000", "ELECTION_MAX_MS": "5000"})
    assert patient.cluster().quorum_loss_ms == 6_000


def test_a_refusal_says_which_source_is_to_blame(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("http_port = true\n")
    assert f"HTTP_PORT True (from {file})" in refusal(file=file)
    assert "HTTP_PORT 'x' (from the flag --http-port)" in refusal({"http_port": "x"}, {"HTTP_PORT": "1"})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("htp_port = 1", ["'htp_port'", "no setting"]),
        ("[server]\nhttp_port = 1", ["'server'", "no setting"]),
        ("http_port = ", ["not valid TOML"]),
        ("auth_tokens = [1]", ["AUTH_TOKENS", "list of texts"]),
        ("peers = 7", ["PEERS", "id=host:port"]),
        ("data_path = 7", ["DATA_PATH", "text"]),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, content: str, words: list[str]) -> None:
    file = tmp_path / "node.toml"
    file.write_text(content)
    message = refusal(file=file)
    assert all(word in message for word in words), message


def test_a_key_that_is_almost_a_setting_is_told_which(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    for wrong, right in (("http_prot", "http_port"), ("HTTP_PORT", "http_port"), ("cluster-name", "cluster_name")):
        file.write_text(f"{wrong} = 1")
        assert f"did you mean {right!r}?" in refusal(file=file)


def test_words_may_be_capital_and_switches_may_be_booleans_of_toml(tmp_path: Path) -> None:
    assert load({}, {"LOG_LEVEL": "INFO", "METRICS_AUTH": "True"}).log_level == "info"
    file = tmp_path / "node.toml"
    file.write_text("metrics_auth = true\nwebhook_allow_private = false\n")
    config = load({}, {}, file)
    assert (config.metrics_auth, config.webhook_allow_private) == (True, False)
    file.write_text("log_level = true")
    assert "must be one of debug" in refusal(file=file)


def test_an_empty_path_is_not_the_present_folder(tmp_path: Path) -> None:
    assert "DATA_PATH '' (from the flag --data-path) must not be empty" in refusal({"data_path": ""})
    file = tmp_path / "node.toml"
    file.write_text("data_path = ''")
    assert "must not be empty" in refusal(file=file)


def test_ports_that_the_system_chooses_or_that_are_off_are_not_the_same() -> None:
    config = load({}, {"HTTP_PORT": "0", "BULLMQ_PORT": "0"})
    assert (config.http_port, config.bullmq_port) == (0, 0)
    assert load({}, {"HTTP_PORT": "8080", "BULLMQ_PORT": "off"}).bullmq_port is None
    assert load({}, {"HTTP_PORT": "7790", "PEER_PORT": "7800"}).peer_port == 7800


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(file=tmp_path / "missing.toml")


def test_peers_can_be_text_or_a_table(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("[peers]\nn1 = '127.0.0.1:7790'\nn2 = '[::1]:7791'\n")
    from_file = load({}, {}, file)
    assert from_file.peers == load({}, {"PEERS": "n1=127.0.0.1:7790, n2=[::1]:7791"}).peers
    assert from_file.members() == {"n1": "127.0.0.1:7790", "n2": "[::1]:7791"}


def test_the_peer_listener_uses_the_port_that_peers_name() -> None:
    given = {"NODE_ID": "n2", "PEERS": THREE, "CLUSTER_SECRET": "s"}
    assert load({}, given).cluster().listen == "0.0.0.0:7791"
    assert load({}, given | {"PEER_PORT": "9"}).cluster().listen == "0.0.0.0:9"
    alone = load({}, {"HOST": "::1"})
    assert (alone.cluster().listen, alone.members()) == ("[::1]:7790", {"n1": "127.0.0.1:7790"})


def test_secrets_have_no_flag_and_are_never_shown(tmp_path: Path) -> None:
    secrets = {row.key for row in settings() if row.about.secret}
    assert secrets == {"cluster_secret", "cluster_secret_previous", "auth_tokens"}
    assert all(setting(key).flag is None for key in secrets)
    config = load({}, {"CLUSTER_SECRET": "hunter2", "AUTH_TOKENS": "hunter3"})
    assert (config.cluster_secret, config.auth_tokens) == ("hunter2", ("hunter3",))
    assert "hunter" not in f"{config} {config!r}"
    file = tmp_path / "node.toml"
    file.write_text("auth_tokens = ['hunter4', 4]\ncluster_secret = 5\n")
    assert "hunter" not in refusal(file=file)


def test_the_secret_can_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("hunter2\n")
    config = load({"cluster_secret_file": str(file)}, {})
    assert config.cluster_secret == "hunter2"
    assert config.cluster().secret == "hunter2"
    both = refusal(environment={"CLUSTER_SECRET": "a", "CLUSTER_SECRET_FILE": str(file)})
    assert "both" in both
    file.write_text(" \n")
    assert "is empty" in refusal({"cluster_secret_file": str(file)})
    assert "cannot be read" in refusal({"cluster_secret_file": str(tmp_path)})
    file.write_text("hunter3\n")
    both = load({"cluster_secret_previous_file": str(file)}, {"CLUSTER_SECRET": "hunter2"})
    assert both.cluster().secrets == ("hunter2", "hunter3")
    assert "hunter" not in f"{both!r}"
    assert "CLUSTER_SECRET_PREVIOUS_FILE" in refusal({"cluster_secret_previous_file": str(tmp_path)})


def test_no_secret_is_good_beside_one_only_when_that_is_said() -> None:
    assert load({}, {"CLUSTER_SECRET": "s"}).cluster().secrets == ("s",)
    assert load({}, {"CLUSTER_SECRET": "s", "CLUSTER_SECRET_PREVIOUS": "s"}).cluster().secrets == ("s",)
    assert load({}, {"CLUSTER_SECRET": "s", "CLUSTER_SECRET_PREVIOUS": ""}).cluster().secrets == ("s",)
    assert load({}, {"CLUSTER_SECRET": "s", "CLUSTER_SECRET_PREVIOUS": "none"}).cluster().secrets == ("s", "")


def test_tokens_are_a_list_without_empty_ones() -> None:
    assert load({}, {"AUTH_TOKENS": " a, b,,"}).auth_tokens == ("a", "b")


def test_every_setting_says_what_it_is() -> None:
    for row in settings():
        assert row.about.help.endswith("."), row.key
        assert row.about.group
        if not row.about.default_text:
            assert row.parse(str(row.default)) == row.default, row.key


def test_defaults_of_consensus_are_those_of_the_cluster() -> None:
    defaults = {field.name: field.default for field in msgspec.structs.fields(ClusterConfig)}
    shared = [name for name in defaults if name in {row.key for row in settings()} - {"node_id", "peers"}]
    assert "heartbeat_ms" in shared
    assert {name: setting(name).default for name in shared} == {name: defaults[name] for name in shared}


@pytest.mark.parametrize("name", FILES)
def test_generated_files_are_up_to_date(name: str) -> None:
    assert Path(name).read_text("utf-8") == FILES[name](), "run scripts/generate"
