"""What a container gets from the API: its variables, and folders for its volumes."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import Any

from tests.support.kubernetes.api import Api, Object, Refused
from tests.support.kubernetes.processes import PATH, Image


class NotYet(Exception):
    """Something that the pod refers to is not there; it is tried again. reason: as Kubernetes calls it."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


async def held(api: Api, namespace: str, kind: str, name: str, reason: str) -> Object:
    """Return what a Secret or a ConfigMap holds. Raises NotYet."""
    try:
        found = await api.get(f"/api/v1/namespaces/{namespace}/{kind}s/{name}")
    except Refused as error:
        if error.status != 404:
            raise
        raise NotYet(reason, f'{kind} "{name}" not found') from None
    data = found.get("data") or {}
    if kind == "secret":
        return {key: base64.b64decode(value) for key, value in data.items()}
    return {key: value.encode() for key, value in data.items()}


def of_pod(pod: Object, address: str, path: str) -> str:
    """The value of a fieldRef."""
    meta = pod["metadata"]
    if one := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return (meta.get(one[1]) or {}).get(one[2], "")
    return {
        "metadata.name": meta["name"],
        "metadata.namespace": meta["namespace"],
        "metadata.uid": meta["uid"],
        "spec.nodeName": pod["spec"]["nodeName"],
        "status.podIP": address,
    }[path]


def expanded(text: str, variables: dict[str, str]) -> str:
    """Put variables in for $(NAME); one that there is not stays as it is."""

    def value(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else variables.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([A-Za-z_][\w.]*)\)", value, text)


async def variables(api: Api, pod: Object, container: Object, address: str, image: Image) -> dict[str, str]:
    """Return the environment of a container. Raises NotYet."""
    namespace, reason = pod["metadata"]["namespace"], "CreateContainerConfigError"
    made = {"PATH": PATH, "HOSTNAME": pod["metadata"]["name"], "HOME": "/"} | image.variables
    for source in container.get("envFrom") or []:
        kind = "secret" if "secretRef" in source else "configMap"
        for name, data in (await held(api, namespace, kind.lower(), source[f"{kind}Ref"]["name"], reason)).items():
            made[source.get("prefix", "") + name] = data.decode()
    for one in container.get("env") or []:
        given: dict[str, Any] = one.get("valueFrom") or {}
        if "fieldRef" in given:
            made[one["name"]] = of_pod(pod, address, given["fieldRef"]["fieldPath"])
            continue
        if not given:
            made[one["name"]] = expanded(one.get("value", ""), made)
            continue
        (kind, at) = next(iter(given.items()))
        data = await held(api, namespace, kind.removesuffix("KeyRef").lower(), at["name"], reason)
        if at["key"] not in data:
            if at.get("optional"):
                continue
            raise NotYet(reason, f"couldn't find key {at['key']} in {at['name']}")
        made[one["name"]] = data[at["key"]].decode()
    return made


async def folders(api: Api, pod: Object, folder: Path, disks: Path) -> dict[str, Path]:
    """Make the folders of a pod's volumes; return them by name. disks: where those of claims are. Raises NotYet."""
    namespace, group = pod["metadata"]["namespace"], (pod["spec"].get("securityContext") or {}).get("fsGroup")
    made: dict[str, Path] = {}
    for volume in pod["spec"].get("volumes") or []:
        place = folder / f"volume-{volume['name']}"
        if claim := volume.get("persistentVolumeClaim"):
            place = await disk(api, namespace, claim["claimName"], disks)
        place.mkdir(parents=True, exist_ok=True)
        for kind in ("configMap", "secret"):
            if kind in volume:
                given = volume[kind]
                name = given.get("name") or given["secretName"]
                data = await held(api, namespace, kind.lower(), name, "ContainerCreating")
                write(place, data, given)
        if group is not None and place.stat().st_gid != group:
            for path in (place, *place.rglob("*")):
                os.chown(path, -1, group, follow_symlinks=False)
                if path.is_dir():
                    path.chmod(path.stat().st_mode | 0o2070)
        if "emptyDir" in volume:
            place.chmod(0o2777)
        made[volume["name"]] = place
    return made


def write(place: Path, data: Object, given: Object) -> None:
    """Write the keys of a Secret or a ConfigMap that are asked for as files. Raises NotYet."""
    wanted = {one["key"]: one["path"] for one in given.get("items") or []} or {name: name for name in data}
    for name, path in wanted.items():
        if name not in data:
            raise NotYet("ContainerCreating", f"references non-existent secret key: {name}")
        (place / path).write_bytes(data[name])
        (place / path).chmod(given.get("defaultMode", 0o644))


async def disk(api: Api, namespace: str, name: str, disks: Path) -> Path:
    """Where the disk of a claim is. Raises NotYet."""
    try:
        claim = await api.get(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}")
    except Refused:
        raise NotYet("ContainerCreating", f'persistentvolumeclaim "{name}" not found') from None
    if claim["status"].get("phase") != "Bound":
        raise NotYet("ContainerCreating", f'persistentvolumeclaim "{name}" is not bound')
    return disks / claim["spec"]["volumeName"]


def mounts(container: Object, made: dict[str, Path]) -> list[tuple[str, str, bool]]:
    """What of the volumes a container has where: source, target, whether it may only be read."""
    return [
        (
            str(made[one["name"]] / one.get("subPath", "")),
            one["mountPath"],
            bool(one.get("readOnly")),
        )
        for one in container.get("volumeMounts") or []
    ]
