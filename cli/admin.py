"""Questions to a running node over its own HTTP.

The table of `quorumq status`, and the probe that `quorumq dev` waits on.
"""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quorumq.cli.tables import laid_out
from quorumq.cluster.tls import reason as tls_reason
from quorumq.cluster.tls import speaks_none

if TYPE_CHECKING:
    from rich.console import Group

NUMBERS = ("match index", "lag")


class NoAnswer(Exception):
    """The node cannot be reached, or what answered is no node; the message says which."""


def trust(ca: Path | None) -> ssl.SSLContext | None:
    """What knows nodes by certificates of this authority (PEM), instead of those that the system trusts. Raises NoAnswer."""
    if ca is None:
        return None
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ValueError) as error:
        raise NoAnswer(f"--ca {str(ca)!r} cannot be used: {error_in_tls(error)}") from None


def opener(tls: ssl.SSLContext | None) -> urllib.request.OpenerDirector:
    """What sends requests. Nodes are asked directly: a proxy that the environment names is meant for other addresses."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls))


def fetch(
    url: str,
    *,
    token: str | None = None,
    tls: ssl.SSLContext | None = None,
    timeout_s: float = 5.0,
    method: str = "GET",
    body: Any = None,
) -> tuple[int, Any]:
    """Send a request; return the status and the body, decoded where it is JSON. Raises NoAnswer.

    tls: by what the node is known at a https address; None: by what the system trusts.
    """
    data = None if body is None else json.dumps(body).encode()
    url = checked(url)
    try:
        request = urllib.request.Request(url, data, method=method)  # noqa: S310 - the caller's own address
    except ValueError as error:
        raise NoAnswer(f"{url!r} is not an address: {error}") from None
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with opener(tls).open(request, timeout=timeout_s) as reply:
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
    reason = error if isinstance(error, ssl.SSLError) else getattr(error, "reason", None) or error
    if isinstance(reason, ssl.SSLError):
        return error_in_tls(reason)
    return str(getattr(reason, "strerror", None) or reason) or type(reason).__name__


def error_in_tls(error: OSError | ValueError) -> str:
    """Say what went wrong in TLS, and what is to be done where that is known."""
    said = tls_reason(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {said} (--ca or QUORUMQ_CA names the authority that signed it)"
    if isinstance(error, ssl.SSLError) and speaks_none(error):
        return "it speaks no TLS there: use http://"
    if isinstance(error, ssl.SSLError) and error.reason in (None, "NO_CERTIFICATE_OR_CRL_FOUND"):
        return "there is no certificate in it, in the form of PEM"
    return said


def cluster_status(url: str, token: str | None = None, *, tls: ssl.SSLContext | None = None) -> dict[str, Any]:
    """Ask a node how the cluster is doing. Raises NoAnswer."""
    return answered(url, "/admin/cluster", token=token, tls=tls)


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


def status_table(status: dict[str, Any]) -> Group:
    """Lay out the members as the asked node sees them; only a leader knows how far the others are behind."""
    leader = leader_of(status)
    title = f"cluster {status['cluster_id'] or 'not founded yet'}, term {status['term']}, leader {leader}"
    caption = (
        f"seen by {status['node_id']}: commit {status['commit_index']}, applied {status['applied_index']}, "
        f"durable {status['durable_index']}, log from {status['first_index']}\ndigest {status['digest']}\n"
        f"feature level {status['level']}, {status['node_id']} knows levels up to {status['level_known']}"
        + ("" if status["has_quorum"] else "; NO QUORUM")
        + ("" if status["ready"] else f"; not ready: {status['ready_reason']}")
        + write_failure(status.get("write_failed_since_ms"))
        + difference(status.get("apart", ""), status.get("differing", []))
    )
    return members_table(status["members"], title, caption)


def leader_of(status: dict[str, Any]) -> str:
    """Name the leader, unless all that the asked node knows is who led some time ago.

    status: what /admin/cluster answers, or /admin/cluster/members, which does not say whether there is a quorum.
    A node that sees no majority does not know who leads, and one that cannot be reached leads nobody here.
    """
    leader = status["leader"]
    if leader is None:
        return "none"
    connected = any(member["id"] == leader and (member["connected"] or member["self"]) for member in status["members"])
    return leader if connected and status.get("has_quorum", True) else f"unknown (it was {leader})"


def difference(apart: str, differing: list[str]) -> str:
    """Say that the members' states are not the same."""
    if apart:
        return f"; NOT TO BE TRUSTED: {apart}"
    return f"; DIFFERS FROM {', '.join(differing)}" if differing else ""


def write_failure(since_ms: int | None) -> str:
    """Say that the node cannot write its log, and since when."""
    if since_ms is None:
        return ""
    return f"; CANNOT WRITE ITS LOG since {datetime.fromtimestamp(since_ms // 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def version_of(member: dict[str, Any]) -> str:
    """Return the version that a member runs, as far as it is known."""
    version = member.get("version")
    return "-" if version is None else version or "before 0.2.0"


def offset(clock_offset_ms: int | None) -> str:
    """Say how far a node's wall clock is from the log's clock, in seconds."""
    return "-" if clock_offset_ms is None else f"{clock_offset_ms / 1000:+.3f} s"


def members_table(members: list[dict[str, Any]], title: str, caption: str = "") -> Group:
    """Lay out members under a title."""
    rows = []
    for member in members:
        via = member.get("via")
        reached = "itself" if member["self"] else f"via {via}" if via else ("yes" if member["connected"] else "NO")
        numbers = ("-" if member[key] is None else str(member[key]) for key in ("match_index", "lag"))
        # What an unreachable member does at present nobody here knows.
        role = member["role"] if member["connected"] or member["self"] else "unknown"
        votes = "yes" if member["voter"] else "no"
        clock = offset(member.get("clock_offset_ms"))
        rows.append((member["id"], member["address"], role, votes, reached, *numbers, version_of(member), clock))
    headings = ("node", "address", "role", "votes", "connected", *NUMBERS, "version", "clock")
    return laid_out(title, headings, rows, numbers=(*NUMBERS, "clock"), after=caption)
