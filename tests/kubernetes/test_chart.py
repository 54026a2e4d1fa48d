"""deploy/helm: linted, rendered with each of ci/*.yaml, checked against Kubernetes's own schemas, and its objects looked at one by one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quorumq.api.settings.loading import load
from quorumq.api.settings.rows import SHUTDOWN_DELAY_MS, settings
from scripts.tools import chart, kubernetes
from tests.kubernetes.rendering import (
    CASES,
    CHART,
    EVERYTHING,
    ROOT,
    VERSIONS,
    helm,
    pod_specs,
    refused,
    rendered,
    text_of,
    the,
    variables,
)

CUSTOM = {"Certificate", "PrometheusRule", "ServiceMonitor"}


@pytest.mark.parametrize("values", CASES, ids=lambda path: path.stem)
def test_lint_finds_nothing(values: Path) -> None:
    done = helm("lint", "--strict", str(CHART), "--values", str(values))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", VERSIONS)
def test_objects_are_what_kubernetes_takes(version: str, tmp_path: Path) -> None:
    files = []
    for values in CASES:
        files.append(tmp_path / values.name)
        files[-1].write_text(text_of(values=values, version=version), "utf-8")
    try:
        folder = kubernetes.validator()
    except kubernetes.Unavailable as error:
        pytest.skip(str(error))
    command = [
        sys.executable,
        "-m",
        "kubernetes_validate",
        "--kubernetes-version",
        version,
        "--strict",
        *map(str, files),
    ]
    done = subprocess.run(command, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).splitlines()
    # Objects of operators have no schema there; of everything else nothing may be said but that it is well.
    wrong = [
        line for line in said if not line.startswith("INFO") and not any(f"kind {kind} " in line for kind in CUSTOM)
    ]
    assert (done.returncode, wrong) == (0, []), said
    assert sum("passed" in line for line in said) >= 30


def test_every_value_has_a_line_and_every_line_a_value() -> None:
    named = [path for path, _ in chart.described() if path]
    assert sorted(named) == sorted(chart.leaves(chart.values()))


def test_every_setting_can_be_given_by_values(tmp_path: Path) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))["properties"]["config"]["properties"]
    container = the("StatefulSet", rendered(values=EVERYTHING))["spec"]["template"]["spec"]["containers"][0]
    given = variables(container)
    for row in settings():
        ways = [row.key in schema, row.env in given, chart.INSTEAD.get(row.key, "").upper() in given]
        assert sum(ways) == (row.key not in chart.NEVER), (
            f"{row.env} cannot be set by a value, or in two ways: see scripts/tools/chart.py"
        )
    ours = {"CONFIG_FILE", "EXTRA", "QUORUMQ_URL", "QUORUMQ_TOKEN", "QUORUMQ_CA"}
    assert set(given) - ours == {name.upper() for name in chart.OWN}
    assert {path for path in chart.OWN.values() if path} <= {path for path, _ in chart.described()}


def test_what_config_says_is_what_a_node_reads(tmp_path: Path) -> None:
    given = {
        "host": "127.0.0.1",
        "log_format": "json",
        "metrics_auth": True,
        "webhook_allow_private": "true",
        "body_bytes_max": 16777216,
        "feature_level_after_ms": 31536000000,
        "connections_per_client_max": "off",
        "rate_limit_max_requests": "Infinity",
        "trusted_proxies": ["10.0.0.0/8", "127.0.0.1"],
        "worker_endpoints": "public,.example.com",
        "cors_allow_origin": 'https://a.example "quoted" \\ back',
    }
    file = tmp_path / "values.json"
    file.write_text(json.dumps({"config": given}), "utf-8")
    text = the("ConfigMap", rendered(values=file), "q-quorumq")["data"]["quorumq.toml"]
    toml = tmp_path / "quorumq.toml"
    toml.write_text(text, "utf-8")
    config = load({}, {}, toml)
    assert config.trusted_proxies == ("10.0.0.0/8", "127.0.0.1") and config.worker_endpoints == (
        "public",
        ".example.com",
    )
    assert (config.metrics_auth, config.webhook_allow_private, config.log_format) == (True, True, "json")
    assert (config.body_bytes_max, config.feature_level_after_ms) == (16777216, 31536000000)
    assert config.connections_per_client_max is None and config.rate_limit_max_requests is None
    assert config.cors_allow_origin == given["cors_allow_origin"]


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ("replicaCount=2", "replicaCount"),
        ("config.http_port=1", "http_port"),
        ("config.log_formt=json", "log_formt"),
        ("config.heartbeat_ms=1", "heartbeat_ms"),
        ("replicas=3", "replicas"),
        ("replicaCount=1,config.clock=clients", "clock"),
        ("replicaCount=1,extraEnvVars[0].name=CLOCK,extraEnvVars[0].value=clients", "CLOCK"),
        ("terminationGracePeriodSeconds=20", "must be at least 30"),
        ("config.shutdown_timeout_ms=60000", "must be at least 80"),
        ("config.shutdown_delay_ms=2000", "readinessProbe"),
        ("peerTls.enabled=true", "peerTls.existingSecret"),
        ("tls.enabled=true", "tls.existingSecret or tls.certManager.enabled"),
        ("tls.enabled=true,tls.certManager.enabled=true", "tls.certManager.issuerRef.name"),
        ("tls.enabled=true,tls.existingSecret=x,tls.mode=sometimes", "mode"),
        ("auth.enabled=false,backup.enabled=true", "backup.enabled needs auth.enabled"),
        ("restore.enabled=true", "restore.existingClaim"),
        ("cluster.existingSecret=", "existingSecret"),
    ],
)
def test_values_that_cannot_work_are_refused(flags: str, word: str) -> None:
    assert word in refused("--set", flags)


# -- Nodes -------------------------------------------------------------------------------------------------------------


def test_a_node_s_settings_can_be_used(tmp_path: Path) -> None:
    container = the("StatefulSet", rendered())["spec"]["template"]["spec"]["containers"][0]
    given = {name: one.get("value", "") for name, one in variables(container).items()}
    given |= {"NODE_ID": "q-quorumq-0", "AUTH_TOKENS": "t", "CLUSTER_SIZE": "3", "DATA_PATH": str(tmp_path / "data")}
    assert given["ADVERTISE"].startswith("$(NODE_ID).")
    # What Kubernetes puts in place of it; it does so for variables that come before.
    assert list(given).index("NODE_ID") < list(given).index("ADVERTISE")
    given["ADVERTISE"] = given["ADVERTISE"].replace("$(NODE_ID)", given["NODE_ID"])
    secret, file = tmp_path / "secret", tmp_path / "quorumq.toml"
    secret.write_text("a secret", "utf-8")
    file.write_text(the("ConfigMap", rendered(), "q-quorumq")["data"]["quorumq.toml"], "utf-8")
    assert given.pop("CLUSTER_SECRET_FILE") == "/etc/quorumq/cluster/secret" and given.pop("CONFIG_FILE")
    config = load({}, given | {"CLUSTER_SECRET_FILE": str(secret)}, file)
    peers = the("Service", rendered(), "q-quorumq-peers")
    assert config.advertise == f"q-quorumq-0.{peers['metadata']['name']}.ns.svc:7790"
    assert config.peers_dns == (f"{peers['metadata']['name']}.ns.svc:7790",)
    assert the("StatefulSet", rendered())["spec"]["serviceName"] == peers["metadata"]["name"]
    assert peers["spec"]["publishNotReadyAddresses"] is True and peers["spec"]["clusterIP"] == "None"
    assert (config.http_port, config.bullmq_port, config.tcp_port, config.peer_port) == (6790, 8080, 6789, 7790)


def test_every_port_names_its_protocol() -> None:
    # Helm 4 applies on the server's side, where versions before 1.23 know a port only by it.
    objects = rendered("--set", "containerPorts.tcp=6789", values=EVERYTHING)
    services = [port for one in objects if one["kind"] == "Service" for port in one["spec"]["ports"]]
    containers = [
        port for pod in pod_specs(objects).values() for one in pod["containers"] for port in one.get("ports", [])
    ]
    assert len(services) == 5 and len(containers) == 4
    assert [port["name"] for port in services + containers if port.get("protocol") != "TCP"] == []


def test_services_and_policies_select_the_nodes_and_nothing_else() -> None:
    objects = rendered(values=EVERYTHING)
    nodes = the("StatefulSet", objects)["spec"]
    labels = nodes["template"]["metadata"]["labels"]
    selectors = [nodes["selector"]["matchLabels"]]
    selectors += [one["spec"]["selector"] for one in objects if one["kind"] == "Service"]
    selectors += [the("PodDisruptionBudget", objects)["spec"]["selector"]["matchLabels"]]
    selectors += [the("NetworkPolicy", objects)["spec"]["podSelector"]["matchLabels"]]
    assert len(selectors) == 5
    others = [one for one in objects if one["kind"] == "Job"] + [the("Pod", objects)]
    others += [the("CronJob", objects)["spec"]["jobTemplate"]["spec"]["template"]]
    for selector in selectors:
        assert selector.items() <= labels.items()
        for one in others:
            own = one["spec"].get("template", one)["metadata"]["labels"]
            assert not selector.items() <= own.items()


def test_the_number_of_nodes_is_not_in_the_pods() -> None:
    three, five = (the("StatefulSet", rendered("--set", f"replicaCount={n}"))["spec"] for n in (3, 5))
    assert (three["replicas"], five["replicas"]) == (3, 5)
    assert three["template"] == five["template"] and three["podManagementPolicy"] == "Parallel"
    sizes = [the("ConfigMap", rendered("--set", f"replicaCount={n}"), "q-quorumq-founding")["data"] for n in (3, 5)]
    assert sizes == [{"CLUSTER_SIZE": "3"}, {"CLUSTER_SIZE": "5"}]


def test_a_change_of_settings_restarts_the_pods() -> None:
    before, after = (
        the("StatefulSet", rendered("--set", f"config.log_level={level}"))["spec"]["template"]
        for level in ("info", "debug")
    )
    assert before != after


def test_probes_ask_what_each_is_for_and_stopping_takes_two_steps() -> None:
    pod = the("StatefulSet", rendered())["spec"]["template"]["spec"]
    node = pod["containers"][0]
    asked = {name: node[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert asked == {"startup": "/startupz", "readiness": "/readyz", "liveness": "/livez"}
    ready = node["readinessProbe"]
    assert ready["periodSeconds"] * ready["failureThreshold"] * 1000 < SHUTDOWN_DELAY_MS
    assert node["lifecycle"]["preStop"]["exec"]["command"] == ["quorumq", "prestop"]
    config = load({}, {"HOST": "0.0.0.0", "CLUSTER_INSECURE": "true"}, None)
    assert pod["terminationGracePeriodSeconds"] * 1000 >= config.leaving_ms() + config.shutdown_timeout_ms + 15_000


@pytest.mark.parametrize("values", CASES, ids=lambda path: path.stem)
def test_no_pod_may_more_than_it_needs(values: Path) -> None:
    pods = pod_specs(rendered(values=values))
    assert pods
    for name, pod in pods.items():
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            if container["name"] == "side":
                continue
            assert container["image"] == pod["containers"][0]["image"]
            may = container["securityContext"]
            assert (may["runAsUser"], may["runAsNonRoot"]) == (10001, True), name
            assert may["readOnlyRootFilesystem"] is True and may["capabilities"] == {"drop": ["ALL"]}, name
            assert may["allowPrivilegeEscalation"] is False and may["privileged"] is False, name
            # What it mounts is there.
            assert {one["name"] for one in container["volumeMounts"]} <= {one["name"] for one in pod["volumes"]} | {
                "data"
            }


def test_the_peer_port_is_left_to_the_nodes() -> None:
    for values in (CASES[0], EVERYTHING):
        objects = rendered(values=values)
        policy = the("NetworkPolicy", objects)["spec"]
        nodes = the("StatefulSet", objects)["spec"]["selector"]["matchLabels"]
        for rule in policy["ingress"]:
            if 7790 in [one["port"] for one in rule["ports"]]:
                assert rule["from"] == [{"podSelector": {"matchLabels": nodes}}]
    closed = the("NetworkPolicy", rendered(values=EVERYTHING))["spec"]
    assert all("from" in rule for rule in closed["ingress"]) and "Egress" in closed["policyTypes"]


def test_with_tls_probes_jobs_and_prometheus_speak_it_and_only_nodes_see_the_key() -> None:
    for objects, secret in (
        (rendered("--set", "tls.enabled=true,tls.existingSecret=web,backup.enabled=true"), "web"),
        (rendered(values=EVERYTHING), "queue-tls"),
    ):
        pods = pod_specs(objects)
        (node,) = [
            one for one in the("StatefulSet", objects)["spec"]["template"]["spec"]["containers"] if "args" in one
        ]
        assert {node[f"{probe}Probe"]["httpGet"]["scheme"] for probe in ("startup", "readiness", "liveness")} == {
            "HTTPS"
        }
        given = variables(node)
        mounts = {one["name"]: one["mountPath"] for one in node["volumeMounts"]}
        assert given["TLS_CERT"]["value"] == f"{mounts['tls']}/tls.crt" and given["TLS"]["value"] == "required"
        assert given["QUORUMQ_URL"]["value"] == "https://localhost:6790"
        commands = [name for name in pods if not name.startswith("StatefulSet")]
        assert len(commands) >= 4
        for name in commands:
            (container,) = pods[name]["containers"]
            own = variables(container)
            assert own["QUORUMQ_URL"]["value"].startswith("https://") and own["QUORUMQ_URL"]["value"].endswith(
                ".svc:6790"
            )
            # The authority's certificate alone.
            (volume,) = [one["secret"] for one in pods[name]["volumes"] if "secret" in one]
            assert volume["secretName"] == secret and [one["key"] for one in volume["items"]] == ["ca.crt"]
            mounted = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
            assert own["QUORUMQ_CA"]["value"] == f"{mounted['tls-ca']}/ca.crt"
    certificate = next(
        one for one in objects if one["kind"] == "Certificate" and one["spec"]["secretName"] == "queue-tls"
    )
    assert {"queue.ns.svc", "localhost", "queue.example.com"} <= set(certificate["spec"]["dnsNames"])
    (endpoint,) = the("ServiceMonitor", objects)["spec"]["endpoints"]
    assert endpoint["scheme"] == "https" and endpoint["tlsConfig"]["serverName"] == "queue.ns.svc"
    assert "queue.ns.svc" in certificate["spec"]["dnsNames"]
    public = rendered("--set", "tls.enabled=true,tls.existingSecret=web,tls.caKey=")
    assert "QUORUMQ_CA" not in variables(the("Pod", public)["spec"]["containers"][0])


def test_one_node_has_no_budget_and_older_kubernetes_gets_what_it_knows() -> None:
    assert not [one for one in rendered("--set", "replicaCount=1") if one["kind"] == "PodDisruptionBudget"]
    assert the("PodDisruptionBudget", rendered())["spec"]["maxUnavailable"] == 1
    old = rendered(values=EVERYTHING, version="1.20.2")
    spec = the("StatefulSet", old)["spec"]
    assert "minReadySeconds" not in spec and "persistentVolumeClaimRetentionPolicy" not in spec
    assert the("CronJob", old)["apiVersion"] == "batch/v1beta1"
    assert the("StatefulSet", rendered(version="1.27.0"))["spec"]["persistentVolumeClaimRetentionPolicy"]


def test_nothing_is_random_and_no_registry_is_named() -> None:
    templates = "".join(path.read_text("utf-8") for path in (CHART / "templates").rglob("*") if path.is_file())
    assert not re.search(r"\b(rand|gen)[A-Z]", templates)
    assert helm("template", "q", str(CHART)).stdout == helm("template", "q", str(CHART)).stdout
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    image = the("StatefulSet", rendered())["spec"]["template"]["spec"]["containers"][0]["image"]
    assert version and image == f"quorumq:{version[1]}"
    assert not [one for one in rendered() if one["kind"] == "Secret"]
