"""Backups by the CronJob, and a new, empty release that begins with one: on a real control plane."""

from __future__ import annotations

import pytest

from tests.kubernetes.clients import Clients
from tests.kubernetes.release import NAME, installed
from tests.support.kubernetes.api import Object
from tests.support.kubernetes.cluster import Cluster

pytestmark = [pytest.mark.timeout(600), pytest.mark.long]


async def test_a_backup_is_taken_and_an_empty_release_begins_with_it(kubernetes: Cluster) -> None:
    backup = {"backup.enabled": "true", "backup.schedule": "* * * * *"}
    async with installed(kubernetes, "backup", **backup) as one:
        async with Clients(one, rate=100) as clients:
            await clients.until(40)
        held = await one.converged(3)
        (before,) = await one.objects("cronjobs", "/apis/batch/v1beta1")
        assert before["spec"]["schedule"] == "* * * * *"

        async def taken() -> Object | None:
            # One that began after the last acknowledgement.
            for job in await one.objects("jobs", "/apis/batch/v1"):
                if job["metadata"]["name"].startswith(f"{NAME}-backup-") and job["status"].get("succeeded"):
                    return job
            return None

        await one.until("the CronJob has taken a backup", taken, 180)
        claims = {claim["metadata"]["name"]: claim for claim in await one.objects("persistentvolumeclaims")}
        disk = one.cluster.folder / "disks" / claims[f"{NAME}-backup"]["spec"]["volumeName"]
        (file,) = [path.name for path in disk.glob("*.image")][-1:]

        # Everything but the backup goes.
        await one.cluster.helm("uninstall", NAME, f"--namespace={one.namespace}", "--wait")
        await one.ready(0)
        for number in range(3):
            await one.kubectl("delete", "pvc", f"data-{NAME}-{number}")
        (claim,) = await one.objects("persistentvolumeclaims")
        assert claim["metadata"]["name"] == f"{NAME}-backup"

        restore = {"restore.enabled": "true", "restore.existingClaim": f"{NAME}-backup", "restore.file": file}
        one.values["backup.suspend"] = "true"
        await one.install(**restore)
        await one.ready(3)
        assert await one.converged(3) == held
        for pod in await one.pods():
            assert await clients.broken(pod) == []
        await one.upgrade(values={"restore.enabled": "false"})
        await one.ready(3)
        async with Clients(one, rate=100) as more:
            more.history.jobs |= clients.history.jobs
            await more.until(20)
        assert more.failed == [] and await more.broken(f"{NAME}-0") == []
