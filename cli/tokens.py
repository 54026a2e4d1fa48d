"""`quorumq tokens`: make, show and revoke the tokens of AUTH_TOKENS_FILE.

The commands change the file; nodes that have it read it again within a second or two. A token is shown once, when it is made.
"""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quorumq.api import tokens
from quorumq.cli.tables import laid_out, show

if TYPE_CHECKING:
    from rich.console import Group

app = typer.Typer(no_args_is_help=True, help="Make, show and revoke the tokens that clients send.")

File = Annotated[
    Path,
    typer.Option("--file", metavar="FILE", help="The file of tokens.", envvar="AUTH_TOKENS_FILE", show_envvar=True),
]
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
LIFE = re.compile(r"(\d{1,6})([mhdw])")


def fail(message: str) -> typer.Exit:
    """Say why on standard error, in one line, and give what ends the command."""
    typer.echo(f"quorumq: {message}", err=True)
    return typer.Exit(1)


def troubled(path: Path, error: Exception) -> typer.Exit:
    """Say what is wrong with a file."""
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return fail(f"{path} cannot be used: {reason or type(error).__name__}")


def moment(text: str) -> datetime:
    """Read when a token ends: `30d` from now, or a time in ISO 8601, UTC unless it says otherwise. Raises BadParameter."""
    if found := LIFE.fullmatch(text):
        try:
            ends = tokens.now() + timedelta(**{UNITS[found[2]]: int(found[1])})
        except OverflowError:
            raise typer.BadParameter(f"{text!r} is too far away; leave it out for a token without an end") from None
    else:
        try:
            ends = datetime.fromisoformat(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is neither like 12h or 30d nor a time like 2027-01-31T12:00") from None
        ends = (ends if ends.tzinfo else ends.replace(tzinfo=UTC)).astimezone(UTC)
    if ends <= tokens.now():
        raise typer.BadParameter(f"{text!r} is not in the future")
    return ends


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the token is called in the audit.", metavar="NAME")],
    file: File,
    right: Annotated[
        list[str],
        typer.Option("--right", "-r", help=f"What it may do; repeat it for several: {', '.join(tokens.RIGHTS)}."),
    ],
    queue: Annotated[
        list[str] | None,
        typer.Option(
            "--queue", "-q", help="Queue that it is for, `*` for any text; repeat it for several.  [default: *]"
        ),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="When it ends: 12h, 30d or 2027-01-31T12:00; left out, never.")
    ] = None,
) -> None:
    """Make a token and print it, once: the file holds only its digest."""
    rights = list(dict.fromkeys(one.strip() for text in right for one in text.split(",") if one.strip()))
    if unknown := [one for one in rights if one not in tokens.RIGHTS]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(tokens.RIGHTS)}")
    if not rights:
        raise typer.BadParameter(f"give at least one of {', '.join(tokens.RIGHTS)}", param_hint="--right")
    if queue and not all(one.strip() for one in queue):
        raise typer.BadParameter("a queue needs a name, or a pattern such as mail-*", param_hint="--queue")
    ends = None if expires is None else moment(expires)
    if not tokens.NAME.fullmatch(name):
        raise typer.BadParameter(
            "a name is 1 to 63 letters, digits, '.', '_' or '-', and begins with a letter or digit"
        )
    try:
        secret, token = tokens.make(name, rights, queue or ["*"], ends)
        tokens.change(file, lambda known: with_one_more(known, token))
    except (tokens.BadTokens, OSError) as error:
        raise troubled(file, error) from None
    try:
        typer.echo(secret)
        sys.stdout.flush()
    except OSError as error:
        # Nobody would ever know it.
        tokens.change(file, lambda known: without(known, name))
        raise fail(f"the token cannot be printed, so there is none: {error.strerror}") from None
    ending = f", until {shown(token.expires)}" if token.expires else ""
    typer.echo(
        f"{name}: {', '.join(token.rights)} on {', '.join(token.queues)}{ending}; it is not shown again", err=True
    )


def with_one_more(known: list[tokens.Token], token: tokens.Token) -> list[tokens.Token]:
    if any(one.name == token.name for one in known):
        raise fail(f"there is a token {token.name!r} already; revoke it first, or take another name")
    return [*known, token]


@app.command("list")
def list_tokens(file: File) -> None:
    """Show the tokens of the file, never what they are."""
    try:
        known = tokens.read(file)
    except tokens.BadTokens as error:
        raise troubled(file, error) from None
    show(table(known))


def table(known: list[tokens.Token]) -> Group:
    """Lay out tokens."""
    count = f"{len(known)} token" if len(known) == 1 else f"{len(known)} tokens"
    rows = []
    for token in known:
        ends = "never" if token.expires is None else shown(token.expires)
        if token.expires is not None and token.expires <= tokens.now():
            ends += " (over)"
        rows.append((token.name, " ".join(token.rights), " ".join(token.queues), shown(token.created), ends))
    return laid_out(count, ("name", "rights", "queues", "created", "expires"), rows)


def shown(moment: datetime | None) -> str:
    return "-" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


@app.command()
def revoke(name: Annotated[str, typer.Argument(help="Name of the token.", metavar="NAME")], file: File) -> None:
    """Remove a token; nodes refuse it, and end its WebSockets and streams, once they have read the file again."""
    try:
        tokens.change(file, lambda known: without(known, name))
    except (tokens.BadTokens, OSError) as error:
        raise troubled(file, error) from None
    typer.echo(f"{name} is revoked", err=True)


@app.command()
def rotate(name: Annotated[str, typer.Argument(help="Name of the token.", metavar="NAME")], file: File) -> None:
    """Put another secret in the place of a token's and print it, once; its name, rights, queues and end stay.

    Idempotency keys that came with the old one go on being known, because they belong to the name. The old one is refused
    once nodes have read the file again.
    """
    secret = ""

    def renewed(known: list[tokens.Token]) -> list[tokens.Token]:
        nonlocal secret
        rest, before = without(known, name), next(token for token in known if token.name == name)
        secret, token = tokens.make(name, before.rights, before.queues, before.expires)
        return [*rest, token]

    try:
        before = tokens.read(file)
        tokens.change(file, renewed)
    except (tokens.BadTokens, OSError) as error:
        raise troubled(file, error) from None
    try:
        typer.echo(secret)
        sys.stdout.flush()
    except OSError as error:
        # Nobody would ever know it: the old one stays what it was.
        tokens.change(file, lambda known: [next(one for one in before if one.name == name), *without(known, name)])
        raise fail(f"the token cannot be printed, so the old one stays: {error.strerror}") from None
    typer.echo(f"{name} has another token; it is not shown again", err=True)


def without(known: list[tokens.Token], name: str) -> list[tokens.Token]:
    rest = [token for token in known if token.name != name]
    if len(rest) == len(known):
        raise fail(f"there is no token {name!r}")
    return rest
