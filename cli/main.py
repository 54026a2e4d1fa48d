"""The `quorumq` command: its subcommands, and the flags of `serve`, which come from the table of settings."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from quorumq.api.settings.loading import load
from quorumq.api.settings.rows import settings
from quorumq.api.settings.table import Setting, SettingError
from quorumq.api.settings.values import parse_peers
from quorumq.cli import level, members, tokens
from quorumq.cli.numbers import whole
from quorumq.cli.tables import show
from quorumq.cluster.version import VERSION

BAD_SETTINGS = 2
DEV_NODES_MAX = 9
# The last node's port must still be one.
DEV_PORT_MAX = 65535 - DEV_NODES_MAX + 1

app = typer.Typer(
    name="quorumq",
    help="A job queue that survives the loss of machines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(members.app, name="members")
app.add_typer(level.app, name="level")
app.add_typer(tokens.app, name="tokens")


def fail(message: str, status: int = 1) -> typer.Exit:
    """Say why on standard error, in one line, and give what ends the command with `status`."""
    print(f"quorumq: {message}", file=sys.stderr)
    return typer.Exit(status)


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"quorumq {VERSION}")
        raise typer.Exit


@app.callback()
def quorumq(
    _version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the command itself."""


def flag_parameter(setting: Setting) -> inspect.Parameter:
    """Turn a row of the table into a parameter that typer makes a flag of.

    Its type is text: the table parses it, so that an error names the setting and where the value came from.
    """
    option = typer.Option(
        setting.flag,
        help=f"{setting.about.help} [dim]({setting.env}; default: {setting.default_text})[/dim]",
        metavar=setting.type_name.upper() if setting.type_name in ("path", "text") else setting.type_name,
        rich_help_panel=setting.about.group,
        show_default=False,
    )
    annotation = Annotated[str | None, option]
    return inspect.Parameter(setting.key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a flag per setting, in place of its `**flags`."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    from_table = [flag_parameter(setting) for setting in settings() if setting.flag]
    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]

    def run(**values: Any) -> None:
        command(**values)

    run.__doc__ = command.__doc__
    run.__name__ = command.__name__
    run.__signature__ = signature.replace(parameters=[*own, *from_table])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*own, *from_table)}
    return run


@app.command()
@with_settings
def serve(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", envvar="CONFIG_FILE", help="TOML file of settings.")
    ] = None,
    while_stdin: Annotated[bool, typer.Option("--while-stdin", hidden=True)] = False,
    **flags: str | None,
) -> None:
    """Run one node.

    Each setting can be a flag, an environment variable or a line of a TOML file; a flag wins over the environment, and
    the environment over the file. Secrets (CLUSTER_SECRET, AUTH_TOKENS) have no flag: others can see a command line.
    """
    try:
        settings_of_node = load(flags, os.environ, config)
    except SettingError as error:
        raise fail(str(error), BAD_SETTINGS) from None
    # Importing makes no garbage, and looking for some takes a seventh of it.
    gc.disable()
    from quorumq.cli import serve as node_process

    gc.freeze()
    gc.enable()
    raise typer.Exit(node_process.serve(settings_of_node, while_stdin=while_stdin))


@app.command()
def dev(
    nodes: Annotated[int, typer.Option(parser=whole(1, DEV_NODES_MAX), metavar="NUMBER", help="Number of nodes.")] = 3,
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the nodes' data, logs and settings.")] = Path(
        "data/dev"
    ),
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove what an earlier cluster left in DIR first.")] = False,
    with_token: Annotated[
        bool, typer.Option("--with-token", help="Make a token, print it and start with it: BullMQ's API needs one.")
    ] = False,
    logs: Annotated[bool, typer.Option("--logs", help="Print the nodes' log lines too.")] = False,
    http_port: Annotated[
        int,
        typer.Option(
            parser=whole(1, DEV_PORT_MAX), metavar="PORT", help="HTTP port of the first node; the others follow."
        ),
    ] = 6790,
    bullmq_port: Annotated[
        int, typer.Option(parser=whole(1, DEV_PORT_MAX), metavar="PORT", help="BullMQ port of the first node.")
    ] = 8080,
    tcp_port: Annotated[
        int | None,
        typer.Option(
            parser=whole(DEV_NODES_MAX, DEV_PORT_MAX),
            metavar="PORT",
            help="Port of bunqueue's own protocol of the first node, the others' are below it; by default the one below its HTTP port.",
            show_default=False,
        ),
    ] = None,
    peer_port: Annotated[
        int, typer.Option(parser=whole(1, DEV_PORT_MAX), metavar="PORT", help="Peer port of the first node.")
    ] = 7790,
) -> None:
    """Run a whole cluster on this machine, to try things out."""
    from quorumq.cli import dev as local_cluster

    cluster = local_cluster.members(nodes, data, http_port, bullmq_port, peer_port, tcp_port)
    try:
        asyncio.run(local_cluster.dev(cluster, fresh=fresh, show_logs=logs, with_token=with_token))
    except local_cluster.DevFailed as error:
        raise fail(str(error)) from None


@app.command()
@with_settings
def prestop(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", envvar="CONFIG_FILE", help="TOML file of settings.")
    ] = None,
    **flags: str | None,
) -> None:
    """Have the node of these settings leave the service of its clients, and wait until it may be stopped.

    For hooks that run before a process is stopped, on the node's own machine. The node ceases to be ready, hands leadership
    over and serves on for SHUTDOWN_DELAY_MS. A SIGTERM after this does not wait again.
    """
    from quorumq.cli import leaving

    try:
        print(leaving.ask_to_leave(load(flags, os.environ, config).data_path))
    except SettingError as error:
        raise fail(str(error), BAD_SETTINGS) from None
    except leaving.NotRunning as error:
        raise fail(str(error)) from None


@app.command()
def status(
    url: members.Url = members.URL,
    token: members.Token = None,
    ca: members.Ca = None,
) -> None:
    """Show the nodes of a cluster, as one of them sees them."""
    from quorumq.cli import admin

    try:
        show(admin.status_table(admin.cluster_status(url, token, tls=admin.trust(ca))))
    except admin.NoAnswer as error:
        raise fail(str(error)) from None


@app.command()
def backup(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write it.")],
    url: members.Url = members.URL,
    token: members.Token = None,
    ca: members.Ca = None,
    stale: Annotated[
        bool,
        typer.Option(
            "--stale",
            help="Take what this node holds without asking the others: for when a majority is lost. What they have "
            "acknowledged meanwhile is not in it.",
        ),
    ] = False,
) -> None:
    """Fetch an image of the whole state from a running node, and check it."""
    from quorumq.cli import storage

    try:
        head = storage.take_backup(url, output, token, stale=stale, ca=ca)
    except storage.StorageTrouble as error:
        raise fail(str(error)) from None
    print(f"{output}: the state after entry {head.index:,}, {output.stat().st_size:,} bytes")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `quorumq backup` wrote.")],
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="The node's data directory: new or empty.")],
    node_id: Annotated[str, typer.Option("--node-id", help="The node's NODE_ID.")],
    cluster_name: Annotated[str, typer.Option(help="CLUSTER_NAME of the new cluster.")] = "quorumq",
    at: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="When the new cluster's time begins, if the time in the backup is in the future; the same for every node.",
        ),
    ] = None,
) -> None:
    """Make the data directory of one node of a new cluster from a backup.

    Do this for every node, from the same file, before any of them is started: together they are a cluster with an id of its
    own, the members that their settings say, and the jobs of the backup.
    """
    from quorumq.cli import storage

    try:
        head, moved_to_ms = storage.restore(file, data, node_id, cluster_name, at)
    except storage.StorageTrouble as error:
        raise fail(str(error)) from None
    print(f"{data}: node {node_id} of cluster {cluster_name!r}, the state after entry {head.index:,}")
    if moved_to_ms is not None:
        print(
            f"{data}: the time in the backup was ahead, so everything in it was moved back: it begins at {storage.shown(moved_to_ms)}"
        )


@app.command()
def recover(
    data: Annotated[Path, typer.Argument(metavar="DIR", help="The data directory of a node that is stopped.")],
    member: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID=HOST:PORT",
            help="A member of the new cluster; may be repeated. Without: this node alone, where it was.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Make a new cluster of what one node still holds. For when a majority is lost for good, or the cluster can go on no more.

    That can be because its term or its time has run away. What was there is set aside in the directory; nothing is removed.
    The command says first what it does and what that costs. The other nodes join afterwards, with empty directories.
    """
    from quorumq.cli import recover as recovering
    from quorumq.cli.storage import StorageTrouble

    now_ms = time.time_ns() // 1_000_000
    try:
        given = parse_peers(",".join(member or ()))
        with recovering.held(data):
            if recovering.interrupted(data):
                if dry_run:
                    raise StorageTrouble(
                        f"{data}: an earlier attempt did not come to its end; the next one undoes it first"
                    )
                recovering.undo(data)
            survivor = recovering.read(data)
            membership = recovering.members(survivor, given)
            for line in recovering.plan(data, survivor, membership, now_ms):
                print(line)
            if dry_run:
                print("nothing was changed")
                return
            if not yes and not (sys.stdin.isatty() and typer.confirm("Shall it be done?")):
                raise StorageTrouble("nothing was changed: --yes does it")
            aside = recovering.make(data, survivor, membership, now_ms)
    except ValueError as error:
        raise fail(f"--member {error}") from None
    except StorageTrouble as error:
        raise fail(str(error)) from None
    node = survivor.identity.node_id
    print(f"done: start {node} with this directory; what was there is in {aside}, to be removed when all is well")


log_commands = typer.Typer(name="log", help="A node's files.", no_args_is_help=True)
app.add_typer(log_commands)


@log_commands.command()
def verify(directory: Annotated[Path, typer.Argument(metavar="DIR", help="A node's data directory.")]) -> None:
    """Read all of a node's files from end to end, change nothing, and say what they hold, where they are damaged and what is missing."""
    from quorumq.cli import storage

    try:
        for line in storage.verify(directory):
            print(line)
    except storage.StorageTrouble as error:
        raise fail(str(error)) from None


def main() -> None:
    """Entry point of the `quorumq` command."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.filename is not None:
            raise
        # Commands tell errors of files and connections themselves; this one is of where their words go.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(fail(f"the output cannot be written: {error.strerror}").exit_code) from None


if __name__ == "__main__":
    main()
