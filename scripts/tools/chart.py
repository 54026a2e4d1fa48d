"""What is made from the chart's values.yaml: the table of values in its README, and values.schema.json.

Each value has a line `## @param path text` above it; `## @section title` begins a group. The schema takes a value's kind from its
default, and the settings below `config` from api/settings/rows.py: what is not there is refused before anything is rendered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from ruamel.yaml import YAML

from quorumq.api.settings.rows import settings
from quorumq.api.settings.table import Setting, required

CHART = Path("deploy/helm/quorumq")
BEGIN, END = "<!-- values: made by scripts/generate from values.yaml -->", "<!-- end of values -->"
# Settings that the chart gives the container itself, and from which value; None: what it always is.
OWN: dict[str, str | None] = {
    "node_id": None,
    "peers_dns": None,
    "advertise": None,
    "data_path": None,
    "cluster_size": "replicaCount",
    "cluster_name": "cluster.name",
    "cluster_secret_file": "cluster.existingSecret",
    "cluster_secret_previous_file": "cluster.previousSecretKey",
    "tls_cert": "tls.enabled",
    "tls_key": "tls.enabled",
    "tls": "tls.mode",
    "peer_tls_cert": "peerTls.enabled",
    "peer_tls_key": "peerTls.enabled",
    "peer_tls_ca": "peerTls.enabled",
    "peer_tls": "peerTls.mode",
    "peer_tls_names": "peerTls.names",
    "http_port": "containerPorts.http",
    "bullmq_port": "containerPorts.bullmq",
    "tcp_port": "containerPorts.tcp",
    "peer_port": "containerPorts.peer",
    "auth_tokens": "auth.existingSecret",
    "auth_tokens_file": "auth.tokensFileSecret",
}
# Settings that another one of these stands for.
INSTEAD = {
    "peers": "peers_dns",
    "cluster_secret": "cluster_secret_file",
    "cluster_secret_previous": "cluster_secret_previous_file",
}
# Settings that no release can have: for tests of one node alone.
NEVER = frozenset({"clock"})
# What a default does not say of a value.
NARROWER: dict[str, dict[str, Any]] = {
    "replicaCount": {"enum": [1, 3, 5, 7]},
    "image.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "image.repository": {"type": "string", "minLength": 1},
    "fullnameOverride": {"type": "string", "maxLength": 52},
    "cluster.name": {"type": "string", "minLength": 1},
    "cluster.existingSecret": {"type": "string", "minLength": 1},
    "auth.existingSecret": {"type": "string", "minLength": 1},
    "tls.mode": {"enum": ["required", "optional"]},
    "peerTls.mode": {"enum": ["required", "optional"]},
    "peerTls.names": {"enum": ["check", "ignore"]},
    "service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "service.externalTrafficPolicy": {"enum": ["", "Cluster", "Local"]},
    "service.sessionAffinity": {"enum": ["None", "ClientIP"]},
    "persistence.whenDeleted": {"enum": ["Retain", "Delete"]},
    "persistence.whenScaled": {"enum": ["Retain", "Delete"]},
    "podAntiAffinityPreset": {"enum": ["", "soft", "hard"]},
    "pdb.maxUnavailable": {"type": ["integer", "string"]},
    "terminationGracePeriodSeconds": {"type": "integer", "minimum": 1},
    "backup.keep": {"type": "integer", "minimum": 1},
    "extraDeploy": {"type": "array", "items": {"type": ["object", "string"]}},
}
# Maps of Kubernetes's own, of which the defaults are a part.
OPEN = {
    "resources",
    "updateStrategy",
    "podSecurityContext",
    "containerSecurityContext",
    "metrics.dashboard.labels",
    "startupProbe",
    "readinessProbe",
    "livenessProbe",
}


def text_of_values() -> str:
    return (CHART / "values.yaml").read_text("utf-8")


def values() -> Any:
    """Return the defaults."""
    return YAML(typ="safe", pure=True).load(text_of_values())


def described() -> Iterator[tuple[str, str]]:
    """Give each value's path and text in the file's order; of a section ("", its title)."""
    for line in text_of_values().splitlines():
        if found := re.fullmatch(r"## @section (.+)", line):
            yield "", found[1]
        elif found := re.fullmatch(r"## @param (\S+) (.+)", line):
            yield found[1], found[2]


def at(path: str, held: Any) -> Any:
    """Return the default at a path. Raises KeyError."""
    for part in path.split("."):
        held = held[part]
    return held


def leaves(held: dict[str, Any], under: str = "") -> Iterator[str]:
    """Give the paths that need a text: what is no map, and maps that are empty or open."""
    for key, value in held.items():
        path = f"{under}{key}"
        if isinstance(value, dict) and value and (path not in OPEN or path.endswith("Probe")):
            yield from leaves(value, f"{path}.")
        else:
            yield path


def table() -> str:
    """Return the tables of values for the README."""
    parts, held = [], values()
    for path, text in described():
        if not path:
            parts.append(f"\n### {text}\n\n| value | default | what it is |\n| --- | --- | --- |\n")
            continue
        default = json.dumps(at(path, held), ensure_ascii=False)
        parts.append(f"| `{path}` | `{default}` | {text.replace('|', chr(92) + '|')} |\n")
    return "".join(parts)


def readme() -> str:
    """Return the README with the present tables in it."""
    text = (CHART / "README.md").read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


def schema() -> str:
    """Return values.schema.json."""
    found = of_value(values(), "")
    # What a parent chart shares with all of its own.
    found["properties"]["global"] = {"type": "object"}
    found = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of quorumq", **found}
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def of_value(value: Any, path: str) -> dict[str, Any]:
    """Return the schema of a value with this default."""
    if path == "config":
        left_out = OWN.keys() | INSTEAD.keys() | NEVER
        rows = {row.key: of_setting(row) for row in settings() if row.key not in left_out}
        return {"type": "object", "additionalProperties": False, "properties": rows}
    if path in NARROWER:
        return dict(NARROWER[path])
    if isinstance(value, dict):
        if not value or path in OPEN:
            return {"type": "object"}
        inner = {key: of_value(one, f"{path}.{key}" if path else key) for key, one in value.items()}
        return {"type": "object", "additionalProperties": False, "properties": inner}
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, int):
        return {"type": "integer", "minimum": 0}
    return {"type": "array" if isinstance(value, list) else "string"}


def of_setting(row: Setting) -> dict[str, Any]:
    """Return the schema of a setting, as it may be written below `config`."""
    kind, about = required(row.type), row.about
    found: dict[str, Any] = {"description": about.help}
    if kind is int:
        number: dict[str, Any] = {"type": "integer"}
        number |= {} if about.low is None else {"minimum": about.low}
        number |= {} if about.high is None else {"maximum": about.high}
        return found | ({"anyOf": [number, {"const": about.none_word}]} if about.none_word else number)
    if kind is bool:
        return found | {"enum": ["false", "true", True, False]}
    if get_origin(kind) is Literal:
        return found | {"enum": list(get_args(kind))}
    if get_origin(kind) is tuple:
        return found | {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    return found | {"type": "string"}
