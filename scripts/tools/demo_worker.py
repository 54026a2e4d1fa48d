"""One worker of the demo: pulls files, hashes them, acknowledges with the result, and moves to another node when its own dies.

Standard library only, so it also shows how little a worker needs.  What happens is written to standard output as JSON
lines: {"done": [index, …], "at": seconds}, {"error": text, "node": url, "at": seconds}, {"refused": text, "at": seconds}.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 30.0
# How long a worker stays away from its own node after that did not answer.
AWAY_S = 0.5


def report(**event: Any) -> None:
    print(json.dumps(event | {"at": time.monotonic()}), flush=True)


class Client:
    """Requests to the first of `urls` that answers; the first one of the list is home and is tried again soon."""

    def __init__(self, urls: list[str]) -> None:
        self.urls = urls
        self.connections: dict[str, http.client.HTTPConnection] = {}
        self.away_until: dict[str, float] = {}

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any, bool]:
        """Return status, decoded body, and whether an earlier try may already have had its effect."""
        repeated = False
        while True:
            now = time.monotonic()
            url = min(self.urls, key=lambda one: max(self.away_until.get(one, 0.0) - now, 0.0))
            try:
                status, reply = self.send(url, method, path, body)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.connections.pop(url).close()
                report(error=f"{type(error).__name__}: {error}", node=url)
            else:
                if status < 500:
                    return status, reply, repeated
                report(error=f"{status} {reply}", node=url)
            self.away_until[url] = time.monotonic() + AWAY_S
            repeated = True

    def send(self, url: str, method: str, path: str, body: Any) -> tuple[int, Any]:
        parts = urlsplit(url)
        if url not in self.connections:
            self.connections[url] = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        connection = self.connections[url]
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def hash_file(path: Path) -> dict[str, Any]:
    """Return what the demo computes of a file."""
    content = path.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "lines": len(content.splitlines())}


def work(client: Client, queue: str, name: str, batch: int, lock_ms: int) -> None:
    pull = {"count": batch, "timeout": 1000, "owner": name, "lockTtl": lock_ms}
    while True:
        status, reply, _ = client.request("POST", f"/queues/{queue}/jobs/pull-batch", pull)
        if status != 200:
            raise SystemExit(f"pull-batch answered {status}: {reply}")
        if not reply["jobs"]:
            continue
        results = [hash_file(Path(job["data"]["path"])) for job in reply["jobs"]]
        ids = [job["id"] for job in reply["jobs"]]
        ack = {"ids": ids, "results": results, "tokens": reply["tokens"]}
        status, answer, repeated = client.request("POST", "/jobs/ack-batch", ack)
        if status != 200:
            # A repeat of an acknowledgement that went through is refused; only then is a refusal no news.
            if repeated and all(is_completed(client, job_id) for job_id in ids):
                status = 200
            else:
                report(refused=str(answer))
        if status == 200:
            report(done=[job["data"]["index"] for job in reply["jobs"]])


def is_completed(client: Client, job_id: str) -> bool:
    _, reply, _ = client.request("GET", f"/jobs/{job_id}/state")
    return bool(reply.get("state") == "completed")


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    work(Client(arguments.pop("urls")), **arguments)
