"""Render the chart as Helm does; skip, and say why, where Helm cannot be had."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from scripts.tools import kubernetes

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "quorumq"
CASES = sorted((CHART / "ci").glob("*-values.yaml"))
EVERYTHING = CHART / "ci" / "everything-values.yaml"
VERSIONS = ("1.25.0", "1.30.0", "1.37.0")

Object = dict[str, Any]


@functools.cache
def program() -> str | kubernetes.Unavailable:
    try:
        return str(kubernetes.helm())
    except kubernetes.Unavailable as error:
        return error


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm; skip the test where there is none."""
    found = program()
    if isinstance(found, kubernetes.Unavailable):
        pytest.skip(str(found))
    return subprocess.run([found, *arguments], capture_output=True, text=True, check=False)


def loaded(text: str) -> list[Object]:
    return [one for one in YAML(typ="safe", pure=True).load_all(text) if one]


@functools.cache
def text_of(*arguments: str, values: Path | None = None, version: str = "1.30.0") -> str:
    more = ("--values", str(values)) if values else ()
    done = helm("template", "q", str(CHART), "--namespace", "ns", "--kube-version", version, *more, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(*arguments: str, values: Path | None = None, version: str = "1.30.0") -> list[Object]:
    """Return the objects of the chart with these values and flags."""
    return loaded(text_of(*arguments, values=values, version=version))


def refused(*arguments: str) -> str:
    """Return why the chart cannot be rendered."""
    done = helm("template", "q", str(CHART), *arguments)
    assert done.returncode != 0
    return done.stderr


def the(kind: str, objects: list[Object], name: str = "") -> Object:
    """Return the one object of a kind, or of a kind and a name."""
    (found,) = [one for one in objects if one["kind"] == kind and name in ("", one["metadata"]["name"])]
    return found


def pod_specs(objects: list[Object]) -> dict[str, Object]:
    """Return the pod of everything that makes some, by kind and name."""
    found = {}
    for one in objects:
        spec = one.get("spec", {})
        if one["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        pod = spec if one["kind"] == "Pod" else spec.get("template", {}).get("spec")
        if pod:
            found[f"{one['kind']}/{one['metadata']['name']}"] = pod
    return found


def variables(container: Object) -> dict[str, Object]:
    return {one["name"]: one for one in container.get("env", [])}
