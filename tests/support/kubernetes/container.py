"""The first process of a container: makes its root from what the image and the volumes are, gives up rights, and becomes the program.

`python container.py SPEC`, in mount, process and host-name namespaces of its own. SPEC is a JSON file:
{"root": an empty folder, "hostname", "read_only": bool, "mounts": [[source, target, read_only]], "links": {path: target},
 "files": {path: text}, "rights": [arguments of setpriv], "folder": where to begin, "program": [...]}.
Alone in its file and without imports of others, because it runs where nothing else can be reached.
"""

import ctypes
import json
import os
import sys
from pathlib import Path

READ_ONLY, REMOUNT, BIND, RECURSIVE = 0x1, 0x20, 0x1000, 0x4000
libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    if libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"{source} at {target}")


def main(path: str) -> None:
    spec = json.loads(Path(path).read_text())
    root = spec["root"]
    libc.sethostname(spec["hostname"].encode(), len(spec["hostname"].encode()))
    mount("tmpfs", root, "tmpfs", 0, "mode=755")
    for folder in ("proc", "dev", "etc", "tmp", "run"):
        (Path(root) / folder).mkdir()
    mount("proc", f"{root}/proc", "proc")
    mount("/dev", f"{root}/dev", "", BIND | RECURSIVE)
    for target, text in spec["files"].items():
        (Path(root) / target.lstrip("/")).write_text(text)
    for target, to in spec["links"].items():
        (Path(root) / target.lstrip("/")).symlink_to(to)
    for source, target, read_only in spec["mounts"]:
        place = Path(root) / target.lstrip("/")
        if Path(source).is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        mount(source, str(place), "", BIND)
        if read_only:
            mount("", str(place), "", BIND | REMOUNT | READ_ONLY)
    (Path(root) / spec["folder"].lstrip("/")).mkdir(parents=True, exist_ok=True)
    if spec["read_only"]:
        mount("", root, "", REMOUNT | READ_ONLY)
    os.chroot(root)
    os.chdir(spec["folder"])
    os.execvp("setpriv", ["setpriv", *spec["rights"], *spec["program"]])


if __name__ == "__main__":
    main(sys.argv[1])
