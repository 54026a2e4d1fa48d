"""Questions to a running node over its own HTTP.

The table of `quorumq status`, and the probe that `quorumq dev` waits on.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from datetime import UTC, datetime
from typing import Any

from rich.table import Table


class NoAnswer(Exception):
    """The node cannot be reached, or what answered is no node; the message says which."""


def fetch(
    url: str, *, token: str | None = None, timeout_s: float = 5.0, method: str = "GET", body: Any = None
) -> tuple[int, Any]:
    """Send a request; return the status and the body, decoded where it is JSON. Raises NoAnswer."""
    data = None if body is None else json.dumps(body).encode()
    url = checked(url)
    try:
        request = urllib.request.Request(url, data, method=method)  # noqa: S310 - the caller's own address
    except ValueError as error:
        raise NoAnswer(f"{url!r} is not an address: {error}") from None
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    # Nodes are asked directly: a proxy that the environment names is meant for other addresses.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_s) as reply:
            status, text = reply.status, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            status, text = error.code, error.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise NoAnswer(f"{url} does not answer: {why(error)}") from None
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text.decode("utf-8", "replace")


def checked(url: str) -> str:
    """Complete `host:port` to a URL. Raises NoAnswer for what is neither."""
    scheme, separator, _ = url.partition("://")
    if separator and scheme.lower() not in ("http", "https"):
        raise NoAnswer(f"{url!r} is not an address: it must begin with http:// or https://")
    return url if separator else f"http://{url}"


def why(error: BaseException) -> str:
    """Say in words why a request failed, without the number of the error where it has words."""
    if isinstance(error, http.client.BadStatusLine) and not isinstance(error, OSError):
        return "what answers does not speak HTTP"
    reason = getattr(error, "reason", None) or error
    return str(getattr(reason, "strerror", None) or reason) or type(reason).__name__


def cluster_status(url: str, token: str | None = None) -> dict[str, Any]:
    """Ask a node how the cluster is doing. Raises NoAnswer."""
    return answered(url, "/admin/cluster", token=token)


def answered(url: str, path: str, **how: Any) -> dict[str, Any]:
    """Send a request to a node's path, with the words of `fetch`; return the body of its success. Raises NoAnswer."""
    status, body = fetch(url.rstrip("/") + path, **how)
    if status != 200 or not isinstance(body, dict):
        said = body.get("error") if isinstance(body, dict) else None
        if status == 401:
            said = f"{said or 'Unauthorized'} (give a token by --token or QUORUMQ_TOKEN)"
        elif status == 404 and not said:
            # Another port of a node, or another program.
            said = "this is not the HTTP port (HTTP_PORT, by default 6790) of a node"
        raise NoAnswer(f"{url} answered {status}{f': {said}' if said else ''}")
    return body


def status_table(status: dict[str, Any]) -> Table:
    """Lay out the members as the asked node sees them; only a leader knows how far the others are behind."""
    leader = status["leader"] or "none"
    title = f"cluster {status['cluster_id'] or 'not founded yet'}, term {status['term']}, leader {leader}"
    caption = (
        f"seen by {status['node_id']}: commit {status['commit_index']}, applied {status['applied_index']}, "
        f"durable {status['durable_index']}, log from {status['first_index']}\ndigest {status['digest']}"
        + ("" if status["has_quorum"] else "; NO QUORUM")
        + ("" if status["ready"] else f"; not ready: {status['ready_reason']}")
        + write_failure(status.get("write_failed_since_ms"))
    )
    return members_table(status["members"], title, caption)


def write_failure(since_ms: int | None) -> str:
    """Say that the node cannot write its log, and since when."""
    if since_ms is None:
        return ""
    return f"; CANNOT WRITE ITS LOG since {datetime.fromtimestamp(since_ms // 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def members_table(members: list[dict[str, Any]], title: str, caption: str | None = None) -> Table:
    """Lay out members under a title."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for heading in ("node", "address", "role", "votes", "connected", "match index", "lag"):
        table.add_column(heading, justify="right" if heading in ("match index", "lag") else "left")
    for member in members:
        reached = "itself" if member["self"] else ("yes" if member["connected"] else "NO")
        numbers = ("-" if member[key] is None else str(member[key]) for key in ("match_index", "lag"))
        # What an unreachable member does at present nobody here knows.
        role = member["role"] if member["connected"] else "unknown"
        votes = "yes" if member["voter"] else "no"
        table.add_row(member["id"], member["address"], role, votes, reached, *numbers)
    return table
