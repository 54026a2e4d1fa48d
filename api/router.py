"""What the request path asks of a dialect, and the tree of paths in which the router finds its rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol
from urllib.parse import unquote_to_bytes

from aiohttp import web

from quorumq.node.machine.refusals import Refusal

from .auth import Access, Grant
from .errors import Invalid
from .request import Answer, Route


class Dialect(Protocol):
    """What the request path asks of a dialect."""

    name: str
    routes: tuple[Route, ...]
    # Parameters of paths that are taken as they came (but see `resolve_job_id`); the others are percent-decoded.
    undecoded: frozenset[str]
    # Parameters of paths that may be empty, because the dialect has words of its own for that.
    may_be_empty: frozenset[str]
    # Of the bodies that `error` makes.
    content_type: bytes
    # Whether strangers are told 401 of a path that is not there, so that they cannot find out which are.
    hides_paths: bool
    # Whether it is no other page's affair, and where there are no tokens only this machine's.
    private: bool

    def authorize(self, access: Access, request: web.BaseRequest) -> Grant:
        """Say what the sender of a request may do. Raises Unauthorized."""

    def weigh(self, route: Route, body: bytes) -> None:
        """Check what a large body holds before it is decoded; runs in a thread. Raises Invalid."""

    def refusal(self, refusal: Refusal) -> Answer:
        """Word a refusal that its route does not: status and text."""

    def error(self, status: int, text: str, code: str) -> bytes:
        """Render the body of an error."""


class Mount:
    """A route where a listener serves it, with the dialect that it speaks. template: its whole path."""

    __slots__ = ("dialect", "names", "route", "template")

    def __init__(self, dialect: Dialect, route: Route, names: tuple[str, ...], template: str) -> None:
        self.dialect = dialect
        self.route = route
        self.names = names
        self.template = template


class Branch:
    """A node of the tree of paths: what follows by literal segment, what follows any segment, what ends here."""

    __slots__ = ("any", "any_is_empty", "here", "literal")

    def __init__(self) -> None:
        self.literal: dict[str, Branch] = {}
        self.any: Branch | None = None
        # Whether an empty segment is one, too.
        self.any_is_empty = False
        self.here: Mount | None = None


class Router:
    """Finds the route of a method and a path. A literal segment goes before a parameter."""

    def __init__(self) -> None:
        self._roots: dict[str, Branch] = {}

    def mount(self, dialect: Dialect, prefix: str = "") -> None:
        """Serve a dialect's routes under a prefix."""
        for route in dialect.routes:
            branch = self._roots.setdefault(route.method, Branch())
            names = []
            for segment in (prefix + route.path).split("/")[1:]:
                if segment.startswith("{"):
                    names.append(segment[1:-1])
                    branch.any = branch.any or Branch()
                    branch.any_is_empty = branch.any_is_empty or segment[1:-1] in dialect.may_be_empty
                    branch = branch.any
                else:
                    branch = branch.literal.setdefault(segment, Branch())
            assert branch.here is None, f"{route.method} {route.path} is there twice"
            branch.here = Mount(dialect, route, tuple(names), prefix + route.path)

    def find(self, method: str, path: str) -> tuple[Mount, dict[str, str]] | None:
        """Return the route and the path's parameters. Raises Invalid when one of them cannot be decoded."""
        root = self._roots.get(method)
        if root is None:
            return None
        segments = path.split("/")
        values: list[str] = []
        found = walk(root, segments, 1, values)
        if found is None:
            return None
        parameters = dict(zip(found.names, values, strict=True))
        if "%" in path:
            for name in found.names:
                if name not in found.dialect.undecoded:
                    parameters[name] = percent_decode(parameters[name])
        return found, parameters

    def mounts(self) -> Iterator[Mount]:
        """Every route that is served."""
        branches = list(self._roots.values())
        while branches:
            branch = branches.pop()
            branches += branch.literal.values()
            if branch.any is not None:
                branches.append(branch.any)
            if branch.here is not None:
                yield branch.here


def walk(branch: Branch, segments: list[str], at: int, values: list[str]) -> Mount | None:
    if at == len(segments):
        return branch.here
    segment = segments[at]
    following = branch.literal.get(segment)
    if following is not None:
        found = walk(following, segments, at + 1, values)
        if found is not None:
            return found
    if branch.any is None or not (segment or branch.any_is_empty):
        return None
    values.append(segment)
    found = walk(branch.any, segments, at + 1, values)
    if found is None:
        values.pop()
    return found


MALFORMED = re.compile(r"%(?![0-9A-Fa-f]{2})")


def percent_decode(text: str) -> str:
    """Decode a segment. Raises Invalid where decodeURIComponent would raise."""
    if "%" not in text:
        return text
    if MALFORMED.search(text):
        raise Invalid("Malformed percent-encoding in the path")
    try:
        return unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        raise Invalid("Malformed percent-encoding in the path") from None
