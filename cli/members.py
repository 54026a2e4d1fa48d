"""`quorumq members`: who belongs to a cluster, and adding, promoting, removing and handing over.

Each command asks one node, any node, over its HTTP, and shows the members afterwards.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console

from cli import admin

# A change waits for the leader, and then for this node to hear of it.
TIMEOUT_S = 30.0
PATH = "/admin/cluster/members"

app = typer.Typer(no_args_is_help=True, help="Show and change who belongs to a cluster.")

Url = Annotated[str, typer.Option("--url", help="Address of any node.", envvar="QUORUMQ_URL")]
Token = Annotated[
    str | None,
    typer.Option("--token", help="Token to send.", envvar="QUORUMQ_TOKEN", show_envvar=True, show_default=False),
]
Node = Annotated[str, typer.Argument(help="Id of the node.", metavar="ID")]
URL = "http://127.0.0.1:6790"


def show(url: str, path: str, **how: Any) -> None:
    """Send a request and lay out the members that it answers with."""
    try:
        answer = admin.answered(url, path, timeout_s=TIMEOUT_S, **how)
    except admin.NoAnswer as error:
        typer.echo(f"quorumq: {error}", err=True)
        raise typer.Exit(1) from None
    Console().print(admin.members_table(answer["members"], f"leader {answer['leader'] or 'none'}"))


@app.command("list")
def list_members(url: Url = URL, token: Token = None) -> None:
    """Show the members, as the asked node sees them."""
    show(url, PATH, token=token)


@app.command()
def add(
    node: Node,
    address: Annotated[str, typer.Argument(help="host:port of its peer listener.", metavar="ADDRESS")],
    url: Url = URL,
    token: Token = None,
) -> None:
    """Add a node as a learner: it copies the log and does not vote. Start it, and promote it once it has caught up."""
    show(url, PATH, token=token, method="POST", body={"id": node, "address": address})


@app.command()
def promote(node: Node, url: Url = URL, token: Token = None) -> None:
    """Let a learner that has caught up vote."""
    show(url, f"{PATH}/{quote(node, safe='')}/promote", token=token, method="POST")


@app.command()
def remove(node: Node, url: Url = URL, token: Token = None) -> None:
    """Remove a node; its process ends with status 3. Refused when the rest could then not decide anything."""
    show(url, f"{PATH}/{quote(node, safe='')}", token=token, method="DELETE")


@app.command()
def transfer(
    to: Annotated[str | None, typer.Argument(help="Who is to lead; left out, whoever is furthest ahead.")] = None,
    url: Url = URL,
    token: Token = None,
) -> None:
    """Hand leadership to another voter."""
    show(url, "/admin/cluster/transfer", token=token, method="POST", body={} if to is None else {"to": to})
