"""Files that are made from the code: docs/configuration.md from the table of settings, docs/http-reference.md from the routes,
the chart's table of values and their schema from its values.

Each generated file is a function in FILES; adding one is adding a row.  With --check nothing is written, and the exit
status says whether a file is out of date.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

from quorumq.api.dialects.bullmq.backend import table
from quorumq.api.dialects.bunqueue import payloads
from quorumq.api.mounts import main_dialects
from quorumq.api.openapi import reference
from quorumq.api.settings.rows import settings
from quorumq.api.settings.table import Setting
from scripts.tools import chart

CONFIGURATION = """\
# Settings

<!-- Made by scripts/generate from api/settings/rows.py. Change it there. -->

Every setting of `quorumq serve` can be given as a flag, as an environment variable, or in a TOML file named by
`--config` (or `CONFIG_FILE`). A flag wins over the environment, the environment over the file, the file over the default;
an empty variable counts as not set. A value that cannot be used, and a key in the file that is no setting,
stop the node at once with a message that names the setting and where its value came from (exit status 2).
Secrets have no flag, because others can see a command line.

In the file, names are in lower case, lists are lists and PEERS is a table:

```toml
node_id = "n1"
data_path = "/var/lib/quorumq"
cluster_secret_file = "/etc/quorumq/secret"

[peers]
n1 = "10.0.0.1:7790"
n2 = "10.0.0.2:7790"
n3 = "10.0.0.3:7790"
```
"""


def readable(setting: Setting) -> str:
    """Return the default as the docs show it: large sizes also in MiB."""
    text = setting.default_text
    if not text:
        return "empty"
    if setting.about.default_text:
        return text
    if setting.about.unit == "bytes" and setting.default % (1 << 20) == 0:
        return f"`{text}` ({setting.default >> 20} MiB)"
    return f"`{text}`"


def configuration() -> str:
    """Return docs/configuration.md."""
    parts = [CONFIGURATION]
    for group, rows in itertools.groupby(settings(), key=lambda setting: setting.about.group):
        parts.append(
            f"\n## {group}\n\n| variable | flag | value | default | what it is |\n| --- | --- | --- | --- | --- |\n"
        )
        for row in rows:
            flag = f"`{row.flag}`" if row.flag else "none (secret)"
            value = row.type_name + (f", {row.about.unit}" if row.about.unit else "")
            parts.append(f"| `{row.env}` | {flag} | {value} | {readable(row)} | {row.about.help} |\n")
    return "".join(parts)


def http_reference() -> str:
    """Return docs/http-reference.md."""
    return reference(main_dialects(), payloads.shapes())


BULLMQ_CALLS = """\
# Calls of BullMQ's backend protocol

<!-- Made by scripts/generate from api/dialects/bullmq/backend/table.py. Change it there. -->

How they travel, and what answers mean, is in [bullmq-protocol.md](bullmq-protocol.md).

```text
"""


def bullmq_calls() -> str:
    """Return docs/bullmq-calls.md."""
    return f"{BULLMQ_CALLS}{(table.__doc__ or '').strip()}\n```\n"


FILES: dict[str, Callable[[], str]] = {
    "docs/configuration.md": configuration,
    "docs/http-reference.md": http_reference,
    "docs/bullmq-calls.md": bullmq_calls,
    "deploy/helm/quorumq/README.md": chart.readme,
    "deploy/helm/quorumq/values.schema.json": chart.schema,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/generate", description="Write the files that are made from the code."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is out of date")
    check = parser.parse_args().check
    stale = 0
    for name, make in FILES.items():
        path, text = Path(name), make()
        if path.exists() and path.read_text("utf-8") == text:
            continue
        stale += 1
        if check:
            print(f"{name} is out of date: run scripts/generate")
        else:
            path.write_text(text, "utf-8")
            print(f"wrote {name}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
