"""`quorumq members`: who belongs to a cluster, and adding, promoting, removing and handing over.

Each command asks one node, any node, over its HTTP, and shows the members afterwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from quorumq.cli import admin
from quorumq.cli.tables import show as show_table

# A change waits for the leader, and then for this node to hear of it.
TIMEOUT_S = 30.0
PATH = "/admin/cluster/members"

app = typer.Typer(no_args_is_help=True, help="Show and change who belongs to a cluster.")

Url = Annotated[str, typer.Option("--url", help="Address of any node.", envvar="QUORUMQ_URL")]
Token = Annotated[
    str | None,
    typer.Option("--token", help="Token to send.", envvar="QUORUMQ_TOKEN", show_envvar=True, show_default=False),
]
Ca = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        metavar="FILE",
        envvar="QUORUMQ_CA",
        help="Certificate of the authority that signed the node's, PEM, for https:// addresses.",
        show_default=False,
    ),
]
Node = Annotated[str, typer.Argument(help="Id of the node.", metavar="ID")]
URL = "http://127.0.0.1:6790"


def show(url: str, path: str, *, ca: Path | None, **how: Any) -> None:
    """Send a request and lay out the members that it answers with."""
    try:
        answer = admin.answered(url, path, timeout_s=TIMEOUT_S, tls=admin.trust(ca), **how)
    except admin.NoAnswer as error:
        typer.echo(f"quorumq: {error}", err=True)
        raise typer.Exit(1) from None
    show_table(admin.members_table(answer["members"], f"leader {admin.leader_of(answer)}"))


@app.command("list")
def list_members(url: Url = URL, token: Token = None, ca: Ca = None) -> None:
    """Show the members, as the asked node sees them."""
    show(url, PATH, token=token, ca=ca)


@app.command()
def add(
    node: Node,
    address: Annotated[str, typer.Argument(help="host:port of its peer listener.", metavar="ADDRESS")],
    url: Url = URL,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Add a node as a learner: it copies the log and does not vote. Start it, and promote it once it has caught up."""
    show(url, PATH, token=token, ca=ca, method="POST", body={"id": node, "address": address})


@app.command()
def promote(node: Node, url: Url = URL, token: Token = None, ca: Ca = None) -> None:
    """Let a learner that has caught up vote."""
    show(url, f"{PATH}/{quote(node, safe='')}/promote", token=token, ca=ca, method="POST")


@app.command()
def remove(node: Node, url: Url = URL, token: Token = None, ca: Ca = None) -> None:
    """Remove a node; its process ends with status 3. Refused when the rest could then not decide anything."""
    show(url, f"{PATH}/{quote(node, safe='')}", token=token, ca=ca, method="DELETE")


@app.command()
def transfer(
    to: Annotated[str | None, typer.Argument(help="Who is to lead; left out, whoever is furthest ahead.")] = None,
    url: Url = URL,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Hand leadership to another voter."""
    show(url, "/admin/cluster/transfer", token=token, ca=ca, method="POST", body={} if to is None else {"to": to})


@app.command("set-aside")
def set_aside(
    node: Node,
    data: Annotated[Path, typer.Argument(help="Its data directory; its process must not run.", metavar="DIRECTORY")],
    url: Url = URL,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Move the data of a removed node out of the way, so that it can be added again. Nothing is deleted; a member's data stays."""
    from quorumq.cli import aside
    from quorumq.cli.storage import StorageTrouble

    try:
        answer = admin.answered(url, PATH, token=token, tls=admin.trust(ca), timeout_s=TIMEOUT_S)
        typer.echo(aside.set_aside(data, node, member=aside.is_member(answer, node)))
    except (admin.NoAnswer, StorageTrouble) as error:
        typer.echo(f"quorumq: {error}", err=True)
        raise typer.Exit(1) from None


@app.command()
def resize(
    size: Annotated[int, typer.Argument(min=1, max=9, help="How many nodes there are to be.", metavar="SIZE")],
    name: Annotated[str, typer.Option("--name", help="The nodes are NAME-0, NAME-1, …; others are left alone.")],
    address: Annotated[
        str,
        typer.Option("--address", help="host:port of each one's peer listener, with {id} and {number} in it."),
    ],
    promote: Annotated[bool, typer.Option(help="Wait until new nodes have caught up, and let them vote.")] = True,
    remove: Annotated[bool, typer.Option(help="Remove the nodes from SIZE on, the last first.")] = True,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that all of it may take.")] = 600,
    url: Url = URL,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Have as many members as a StatefulSet has pods. Nothing is done twice, so it can be given again."""
    from quorumq.cli import resizing

    try:
        work = resizing.Resizing(url, token, name, address, timeout, tls=admin.trust(ca))
        for line in work.run(size, promote=promote, remove=remove):
            typer.echo(line)
    except admin.NoAnswer as error:
        typer.echo(f"quorumq: {error}", err=True)
        raise typer.Exit(1) from None
    list_members(url, token, ca)
