"""Push a job to a queue of its own, pull it, acknowledge it: what `helm test` runs. QUORUMQ_URL, QUORUMQ_TOKEN, QUORUMQ_CA say where.

WAIT_S: for how long nobody may answer, 60 s by default.
"""

import json
import os
import ssl
import time
import urllib.error
import urllib.request
import uuid

QUEUE = f"helm-test-{uuid.uuid4().hex}"
URL = os.environ["QUORUMQ_URL"]
KNOWN = ssl.create_default_context(cafile=os.environ.get("QUORUMQ_CA"))


def wait():
    """Until a ready node answers: pods are ready a moment before the Service leads to them, on every machine at its own time."""
    ends = time.monotonic() + float(os.environ.get("WAIT_S", "60"))
    told = False
    while True:
        try:
            with urllib.request.urlopen(URL + "/readyz", timeout=20, context=KNOWN):
                return
        except OSError as error:
            # A name that is no name yet, a port where nobody listens, a node that is not ready; a wrong certificate stays wrong.
            if isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError):
                raise
            if time.monotonic() > ends:
                raise SystemExit(f"nobody is ready at {URL}: {error}") from None
            if not told:
                told = True
                print(f"nobody is ready at {URL} yet: {error}", flush=True)
        time.sleep(0.5)


def ask(path, body=None, method=None):
    request = urllib.request.Request(URL + path, json.dumps(body).encode() if body else None, method=method)
    if token := os.environ.get("QUORUMQ_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=20, context=KNOWN) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{path}: {error.code} {error.read().decode(errors='replace')}") from None


wait()
pushed = ask(f"/queues/{QUEUE}/jobs", {"data": {"from": "helm test"}})["id"]
pulled = ask(f"/queues/{QUEUE}/jobs/pull-batch", {"count": 1, "owner": "helm-test", "lockTtl": 30000})
assert [job["id"] for job in pulled["jobs"]] == [pushed], pulled
ask(f"/jobs/{pushed}/ack", {"token": pulled["tokens"][0], "result": "done"})
assert ask(f"/jobs/{pushed}/result")["result"] == "done"
ask(f"/queues/{QUEUE}/obliterate", method="POST")
print("a job was pushed, pulled and acknowledged")
