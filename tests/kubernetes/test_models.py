"""Objects of operators, in the chart and in examples/kubernetes, against the models of their kinds; the Dockerfile by hadolint."""

from __future__ import annotations

import asyncio
import copy
import functools
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from scripts.tools import kubernetes, kubernetes_checks
from tests.kubernetes.rendering import CASES, EVERYTHING, ROOT, VERSIONS, Object, loaded, rendered
from tests.support.local_cluster import LocalCluster

EXAMPLES = sorted((ROOT / "examples" / "kubernetes").glob("*.yaml"))
GROUPS = ("cert-manager.io/", "gateway.networking.k8s.io/", "keda.sh/", "monitoring.coreos.com/")


@functools.cache
def models() -> Path | kubernetes.Unavailable:
    try:
        return kubernetes_checks.models()
    except kubernetes.Unavailable as error:
        return error


def checked(objects: list[Object]) -> tuple[bool, list[str]]:
    """Hold objects of operators against their models; return whether all are well, and a line for each."""
    folder = models()
    if isinstance(folder, kubernetes.Unavailable):
        pytest.skip(str(folder))
    done = subprocess.run(
        ["node", str(folder / "check.mjs")],
        input=json.dumps(objects, default=str),
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.returncode == 0, done.stdout.splitlines()


def custom(objects: list[Object]) -> list[Object]:
    return [one for one in objects if one["apiVersion"].startswith(GROUPS)]


@pytest.mark.parametrize("values", CASES, ids=lambda path: path.stem)
def test_objects_of_operators_are_what_they_take(values: Path) -> None:
    objects = custom(rendered(values=values))
    well, said = checked(objects)
    assert well and len(said) == len(objects), said
    if values.stem == "everything-values":
        assert {one["kind"] for one in objects} == {"Certificate", "PrometheusRule", "ServiceMonitor"}


def test_examples_are_what_operators_take() -> None:
    objects = [one for file in EXAMPLES for one in custom(loaded(file.read_text("utf-8")))]
    assert {one["kind"] for one in objects} == {"HTTPRoute", "ScaledObject", "TriggerAuthentication"}
    well, said = checked(objects)
    assert well, said


@pytest.mark.parametrize("field", ["endpoints", "selector"])
def test_a_wrong_object_is_found(field: str) -> None:
    (monitor,) = [one for one in custom(rendered(values=CASES[2])) if one["kind"] == "ServiceMonitor"]
    well, said = checked([{**monitor, "spec": {**monitor["spec"], field: "wrong"}}])
    assert not well and field in said[0]


# Maps whose keys are anybody's.
FREE = ("labels", "annotations", "matchLabels")


def maps(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield where the maps of an object are."""
    if isinstance(value, dict):
        yield path
    for key, held in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from maps(held, (*path, key))


def test_a_field_that_a_kind_does_not_have_is_found_wherever_it_is() -> None:
    objects = custom(rendered(values=EVERYTHING))
    objects += [one for file in EXAMPLES for one in custom(loaded(file.read_text("utf-8")))]
    wrong, places = [], []
    for one in objects:
        for path in maps(one):
            changed = copy.deepcopy(one)
            place: Any = changed
            for key in path:
                place = place[key]
            place["surely_no_field"] = "x"
            wrong.append(changed)
            places.append((one["kind"], path))
    _, said = checked(wrong)
    assert len(said) == len(places) > 100
    missed = [place for place, line in zip(places, said, strict=True) if "surely_no_field" not in line]
    # What a trigger of KEDA is told is its own matter.
    rest = [
        (kind, path)
        for kind, path in missed
        if path[-1] not in FREE and not (kind == "ScaledObject" and "triggers" in path)
    ]
    assert missed and not rest


@pytest.mark.parametrize("version", VERSIONS)
def test_the_ingress_is_what_kubernetes_takes(version: str) -> None:
    try:
        folder = kubernetes.validator()
    except kubernetes.Unavailable as error:
        pytest.skip(str(error))
    file = ROOT / "examples" / "kubernetes" / "ingress.yaml"
    command = [sys.executable, "-m", "kubernetes_validate", "--kubernetes-version", version, "--strict", str(file)]
    done = subprocess.run(command, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_examples_name_what_the_chart_makes() -> None:
    services = {one["metadata"]["name"]: one for one in chart_called("quorumq") if one["kind"] == "Service"}
    ports = {str(port[key]) for port in services["quorumq"]["spec"]["ports"] for key in ("name", "port")}
    found = 0
    for file in EXAMPLES:
        text = file.read_text("utf-8")
        for backend in re.findall(r"name: (\S+)\n +port:(?:\n +name:)? (\S+)", text):
            assert backend[0] in services and backend[1] in ports, backend
            found += 1
        for url in re.findall(r"url: (\S+)", text):
            parts = urlsplit(url)
            assert parts.hostname == "quorumq.default.svc" and str(parts.port) in ports
            found += 1
    assert found == 6


def chart_called(release: str) -> list[Object]:
    return rendered("--set", f"fullnameOverride={release}")


async def test_what_keda_asks_for_is_there() -> None:
    (scaled,) = [
        one
        for one in loaded((ROOT / "examples" / "kubernetes" / "keda.yaml").read_text("utf-8"))
        if one["kind"] == "ScaledObject"
    ]
    async with LocalCluster(1, AUTH_TOKENS="t") as cluster:
        (node,) = cluster.nodes

        def ask(path: str, body: bytes | None = None) -> Any:
            request = urllib.request.Request(node.url + path, body, {"Authorization": "Bearer t"})
            with urllib.request.urlopen(request, timeout=20) as reply:
                return reply.read().decode()

        await asyncio.to_thread(ask, "/queues/mail/jobs", b'{"data": 1}')
        depth, age = (one["metadata"] for one in scaled["spec"]["triggers"])
        # https://keda.sh/docs/latest/scalers/metrics-api/: no model of the kind knows them.
        known = {"url", "valueLocation", "targetValue", "activationTargetValue", "format", "authMode"}
        assert set(depth) | set(age) <= known
        value: Any = json.loads(await asyncio.to_thread(ask, urlsplit(depth["url"]).path))
        for part in depth["valueLocation"].split("."):
            value = value[part]
        assert value == 1
        page = await asyncio.to_thread(ask, urlsplit(age["url"]).path)
        assert re.search(rf"^{re.escape(age['valueLocation'])} [0-9.e-]+$", page, re.MULTILINE)


def test_hadolint_finds_nothing() -> None:
    try:
        program = kubernetes_checks.hadolint()
    except kubernetes.Unavailable as error:
        pytest.skip(str(error))
    file = ROOT / "deploy" / "docker" / "Dockerfile"
    done = subprocess.run([str(program), str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
