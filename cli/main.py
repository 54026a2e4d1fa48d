"""The `quorumq` command: its subcommands, and the flags of `serve`, which come from the table of settings."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cli import members, tokens
from node.config import Setting, SettingError, load, settings

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
app.add_typer(tokens.app, name="tokens")


def fail(message: str, status: int = 1) -> typer.Exit:
    """Say why on standard error, in one line, and give what ends the command with `status`."""
    print(f"quorumq: {message}", file=sys.stderr)
    return typer.Exit(status)


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"quorumq {version('quorumq')}")
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
    from cli import serve as node_process

    raise typer.Exit(node_process.serve(settings_of_node, while_stdin=while_stdin))


@app.command()
def dev(
    nodes: Annotated[int, typer.Option(min=1, max=DEV_NODES_MAX, help="Number of nodes.")] = 3,
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the nodes' data, logs and settings.")] = Path(
        "data/dev"
    ),
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove what an earlier cluster left in DIR first.")] = False,
    logs: Annotated[bool, typer.Option("--logs", help="Print the nodes' log lines too.")] = False,
    http_port: Annotated[
        int, typer.Option(min=1, max=DEV_PORT_MAX, help="HTTP port of the first node; the others follow.")
    ] = 6790,
    bullmq_port: Annotated[int, typer.Option(min=1, max=DEV_PORT_MAX, help="BullMQ port of the first node.")] = 8080,
    peer_port: Annotated[int, typer.Option(min=1, max=DEV_PORT_MAX, help="Peer port of the first node.")] = 7790,
) -> None:
    """Run a whole cluster on this machine, to try things out."""
    from cli import dev as local_cluster

    cluster = local_cluster.members(nodes, data, http_port, bullmq_port, peer_port)
    try:
        asyncio.run(local_cluster.dev(cluster, fresh=fresh, show_logs=logs))
    except local_cluster.DevFailed as error:
        raise fail(str(error)) from None


@app.command()
def status(
    url: Annotated[str, typer.Option(help="Address of any node.", envvar="QUORUMQ_URL")] = "http://127.0.0.1:6790",
    token: Annotated[
        str | None, typer.Option(help="Token to send.", envvar="QUORUMQ_TOKEN", show_envvar=True, show_default=False)
    ] = None,
) -> None:
    """Show the nodes of a cluster, as one of them sees them."""
    from cli import admin

    try:
        Console().print(admin.status_table(admin.cluster_status(url, token)))
    except admin.NoAnswer as error:
        raise fail(str(error)) from None


@app.command()
def backup(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write it.")],
    url: Annotated[str, typer.Option(help="Address of any node.", envvar="QUORUMQ_URL")] = "http://127.0.0.1:6790",
    token: Annotated[
        str | None, typer.Option(help="Token to send.", envvar="QUORUMQ_TOKEN", show_envvar=True, show_default=False)
    ] = None,
) -> None:
    """Fetch an image of the whole state from a running node, and check it."""
    from cli import storage

    try:
        head = storage.take_backup(url, output, token)
    except storage.StorageTrouble as error:
        raise fail(str(error)) from None
    print(f"{output}: the state after entry {head.index:,}, {output.stat().st_size:,} bytes")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `quorumq backup` wrote.")],
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="The node's data directory: new or empty.")],
    node_id: Annotated[str, typer.Option("--node-id", help="The node's NODE_ID.")],
    cluster_name: Annotated[str, typer.Option(help="CLUSTER_NAME of the new cluster.")] = "quorumq",
) -> None:
    """Make the data directory of one node of a new cluster from a backup.

    Do this for every node, from the same file, before any of them is started: together they are a cluster with an id of its
    own, the members that their settings say, and the jobs of the backup.
    """
    from cli import storage

    try:
        head = storage.restore(file, data, node_id, cluster_name)
    except storage.StorageTrouble as error:
        raise fail(str(error)) from None
    print(f"{data}: node {node_id} of cluster {cluster_name!r}, the state after entry {head.index:,}")


log_commands = typer.Typer(name="log", help="A node's files.", no_args_is_help=True)
app.add_typer(log_commands)


@log_commands.command()
def verify(directory: Annotated[Path, typer.Argument(metavar="DIR", help="A node's data directory.")]) -> None:
    """Read a node's log and snapshots from end to end, change nothing, and say what they hold or where they are damaged."""
    from cli import storage

    try:
        for line in storage.verify(directory):
            print(line)
    except storage.StorageTrouble as error:
        raise fail(str(error)) from None


def main() -> None:
    """Entry point of the `quorumq` command."""
    app()


if __name__ == "__main__":
    main()
