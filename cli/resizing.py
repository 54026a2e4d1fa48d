"""What `quorumq members resize` does: the changes that make the members of a cluster those that a StatefulSet of some size has.

One change after the other, each by the leader, who refuses what would leave no quorum. What is so already is not done again, and no node is
touched whose id is not NAME and a number.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

from quorumq.cli import admin

PATH = "/admin/cluster/members"
TRANSFER = "/admin/cluster/transfer"
# A change waits for the leader, and then for the asked node to hear of it.
TIMEOUT_S = 30.0
AGAIN_S = 1.0


class Resizing:
    """address: with `{id}` and `{number}` in it.  timeout_s: for all changes together.  tls: by what nodes are known at a https address."""

    def __init__(
        self,
        url: str,
        token: str | None,
        name: str,
        address: str,
        timeout_s: float,
        wait: Callable[[float], None] = time.sleep,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self._url = url
        self._token = token
        self._id = re.compile(rf"{re.escape(name)}-(0|[1-9][0-9]*)")
        self._name = name
        self._address = address
        self._ends = time.monotonic() + timeout_s
        self._wait = wait

    def run(self, size: int, *, promote: bool, remove: bool) -> Iterator[str]:
        """Make the changes, and say each. Raises NoAnswer when one is refused or nobody answered in time."""
        wanted = [f"{self._name}-{number}" for number in range(size)]
        if remove:
            for node in self._beyond(size):
                yield from self._remove(node, wanted)
        held = self._members()
        for number, node in enumerate(wanted):
            if node not in held:
                address = self._address.replace("{id}", node).replace("{number}", str(number))
                self._change("POST", PATH, {"id": node, "address": address})
                yield f"{node} was added and learns"
        if promote:
            for node in [node for node in wanted if not self._members()[node]["voter"]]:
                self._change("POST", f"{PATH}/{quote(node, safe='')}/promote", None, until="catch up")
                yield f"{node} has caught up and votes"

    def _beyond(self, size: int) -> list[str]:
        """Members of this name that there are to be no more, the last first."""
        numbers = [int(found[1]) for node in self._members() if (found := self._id.fullmatch(node))]
        return [f"{self._name}-{number}" for number in sorted(numbers, reverse=True) if number >= size]

    def _remove(self, node: str, wanted: list[str]) -> Iterator[str]:
        held = self._members()
        if held[node]["role"] == "leader":
            heirs = [one for one in wanted if one in held and held[one]["voter"] and held[one]["connected"]]
            if heirs:
                self._change("POST", TRANSFER, {"to": heirs[0]})
                yield f"{heirs[0]} leads in place of {node}"
        self._change("DELETE", f"{PATH}/{quote(node, safe='')}", None)
        yield f"{node} was removed"

    def _members(self) -> dict[str, Any]:
        return {one["id"]: one for one in self._change("GET", PATH, None)["members"]}

    def _change(self, method: str, path: str, body: Any, until: str = "") -> Any:
        """Send a request until it is answered 200. until: a word in a refusal that is only for now."""
        while True:
            try:
                status, answer = admin.fetch(
                    self._url + path,
                    token=self._token,
                    tls=self._tls,
                    timeout_s=TIMEOUT_S,
                    method=method,
                    body=body,
                )
            except admin.NoAnswer as error:
                status, answer = 503, {"error": str(error)}
            if status == 200:
                return answer
            said = str(answer.get("error", "")) if isinstance(answer, dict) else str(answer)
            passing = status >= 500 or "try again" in said or (until and until in said)
            if not passing or time.monotonic() + AGAIN_S > self._ends:
                raise admin.NoAnswer(f"{method} {path}: {status}: {said}")
            self._wait(AGAIN_S)
