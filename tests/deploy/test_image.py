"""The image: built by buildah from the Dockerfile as it is, and run as nobody special, read-only and without capabilities.

`-m long`: where buildah and the base image are, for root; what pip installs is fetched. No engine is needed: the image's root is mounted in
a namespace of its own, without a network but its loopback.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
INSIDE = r"""
set -e
ip link set lo up
mount --make-rprivate /
mount --bind "$IMAGE" "$WORK/root"
mount --bind "$WORK/volume" "$WORK/root/var/lib/quorumq"
mount -t tmpfs tmpfs "$WORK/root/tmp"
mount -t proc proc "$WORK/root/proc"
mount --rbind /dev "$WORK/root/dev"
mount -o remount,bind,ro "$WORK/root"
settings="PATH=$IMAGE_PATH PYTHONDONTWRITEBYTECODE=1 DATA_PATH=/var/lib/quorumq CLUSTER_SECRET=s AUTH_TOKENS=t QUORUMQ_TOKEN=t"
inside=(chroot "$WORK/root" setpriv --reuid 10001 --regid 10001 --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs
    env -i $settings SHUTDOWN_DELAY_MS=500)
"${inside[@]}" sh -c 'grep -E "^(CapEff|CapBnd|NoNewPrivs)" /proc/self/status
    for file in /x /opt/quorumq/x /usr/x; do ! touch $file 2>/dev/null || echo "written: $file"; done'
"${inside[@]}" quorumq serve >"$WORK/log" 2>&1 &
node=$!
python='import json, sys, time, urllib.request as r
def ask(path, body=None):
    return json.load(r.urlopen(r.Request("http://127.0.0.1:6790" + path, body, {"Authorization": "Bearer t"}), timeout=20))
for _ in range(600):
    try:
        ask("/readyz"); break
    except OSError:
        time.sleep(0.1)
pushed = ask("/queues/q/jobs", b"{\"data\": 1}")["id"]
print("pulled" if ask("/queues/q/jobs")["job"]["id"] == pushed else "lost")'
"${inside[@]}" python -c "$python"
"${inside[@]}" "$@" && echo healthy
"${inside[@]}" quorumq status | head -1
"${inside[@]}" quorumq prestop
kill -TERM $node
wait $node
echo "ended with $?"
"""


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def image() -> Iterator[Path]:
    """Build the image; where its root is mounted."""
    base = re.search(r"^ARG PYTHON=(\S+)$", DOCKERFILE.read_text("utf-8"), re.MULTILINE)
    assert base
    if os.geteuid() != 0 or shutil.which("buildah") is None:
        pytest.skip("buildah is not there, or this is not root")
    if subprocess.run(["buildah", "inspect", "--type", "image", base[1]], capture_output=True, check=False).returncode:
        pytest.skip(f"buildah has no {base[1]}")
    # As pip of this machine reaches its index, so does that of the build.
    own = [file for file in ("/etc/pip.conf", "/etc/ssl/certs") if Path(file).exists()]
    mounts = [f"--volume={file}:{file}:ro" for file in own]
    run(
        "buildah",
        "bud",
        "--isolation",
        "chroot",
        "--pull-never",
        *mounts,
        "--file",
        str(DOCKERFILE),
        "--tag",
        "quorumq-test",
        str(ROOT),
    )
    container = run("buildah", "from", "--pull-never", "quorumq-test").strip()
    try:
        yield Path(run("buildah", "mount", container).strip())
    finally:
        run("buildah", "rm", container)
        run("buildah", "rmi", "quorumq-test")


def test_the_image_runs_read_only_without_rights(image: Path, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "volume").mkdir()
    shutil.chown(tmp_path / "volume", 10001, 10001)
    text = DOCKERFILE.read_text("utf-8")
    path = re.search(r"^ENV PATH=(\S+?):\$PATH", text, re.MULTILINE)
    check = re.search(r'^ +CMD \["python", "-c", "(.*)"\]$', text, re.MULTILINE)
    assert path and check
    said = run(
        *("unshare", "--mount", "--net", "--pid", "--fork", "bash", "-c", INSIDE, "inside", "python", "-c", check[1]),
        IMAGE=str(image),
        WORK=str(tmp_path),
        IMAGE_PATH=f"{path[1]}:/usr/local/bin:/usr/bin:/bin",
    ).splitlines()
    assert said[:3] == ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"]
    assert said[3:5] == ["pulled", "healthy"] and "leader n1" in said[5]
    assert "it has left" in said[6] and said[7:] == ["ended with 0"]
    assert (tmp_path / "volume" / "log").is_dir()
