"""`quorumq level`: the feature level of a cluster, and raising it by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from quorumq.cli import admin, tables
from quorumq.cli.members import TIMEOUT_S, URL, Ca, Token, Url
from quorumq.cli.numbers import whole

PATH = "/admin/cluster/level"

app = typer.Typer(no_args_is_help=True, help="Show and raise the feature level of a cluster.")


def show(url: str, *, ca: Path | None, **how: Any) -> None:
    """Send a request and lay out the level that it answers with."""
    try:
        answer = admin.answered(url, PATH, timeout_s=TIMEOUT_S, tls=admin.trust(ca), **how)
    except admin.NoAnswer as error:
        typer.echo(f"quorumq: {error}", err=True)
        raise typer.Exit(1) from None
    title = f"feature level {answer['level']}; the asked node knows levels up to {answer['level_known']}"
    tables.show(admin.members_table(answer["members"], title))


@app.command("show")
def show_level(url: Url = URL, token: Token = None, ca: Ca = None) -> None:
    """Show the level in force, and which version each member runs."""
    show(url, token=token, ca=ca)


@app.command("raise")
def raise_level(
    level: Annotated[
        int | None,
        typer.Argument(
            parser=whole(0, 1_000_000), metavar="LEVEL", help="Left out, the highest that the asked node knows."
        ),
    ] = None,
    url: Url = URL,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Raise it now. It never goes back: versions that do not know it can then not serve in this cluster any more."""
    show(url, token=token, ca=ca, method="POST", body={} if level is None else {"level": level})
