#!/usr/bin/env python3
"""Replay black-box conformance cases against a job-queue server.

    python replay.py --base http://127.0.0.1:6790 [--token T] [--file F.jsonl]
                     [--only GROUP[,GROUP]] [--case ID] [--jobs 8] [--json out.json] [-v]

A case is one JSON line: {"id", "group", "needs"?: ["token"|"no-token"], "steps": [...]}.
Every case gets fresh variables: ${q} and ${q2} (unique queue names) and ${u}
(a unique suffix for ids, cron names, worker ids).  A step is one of

  HTTP   {"method", "path", "headers"?, "body"?, "raw"?, "bg"?: NAME, "auth"?: false,
          "save"?: {"var": "json.path"}, "retry"?: SECONDS, "expect"?: {...}}
  join   {"join": NAME, "save"?, "expect"?}            result of an earlier "bg" request
  sleep  {"sleep": SECONDS}
  WS     {"ws_open": NAME, "path": "/ws"}, {"ws_send": NAME, "body": {...}},
         {"ws_recv": NAME, "match": {...}, "save"?, "timeout"?}   skips messages that do not match
         {"ws_none": NAME, "match": {...}, "timeout"?}            fails if one matches
         {"ws_close": NAME}
  SSE    {"sse_open": NAME, "path": "/events"},
         {"sse_recv": NAME, "match": {...}, "timeout"?}           matches the JSON of a data: line

"expect" has "status" (int or list), "json" (subset), "text", "headers" (subset, lower-case
names) and "ms" ([min, max] elapsed).  "retry" repeats the request until it matches.

Placeholders in a subset: "$any" (present), "$absent", "$int", "$num", "$str", "$bool",
"$uuid", "$ts" (a plausible unix time in ms), {"$re": RX}, {"$in": [...]}, {"$gte": n},
{"$lte": n}, {"$len": n}, {"$contains": [...]}, {"$lacks": [...]}, {"$set": [...]} (any order).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import secrets
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import aiohttp

UUID_RE = re.compile(r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", re.I)
VAR_RE = re.compile(r"\$\{(\w+)\}")
MISSING = object()


class Mismatch(Exception):
    """An expectation that did not hold."""


def is_num(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


SIMPLE = {
    "$any": lambda v: True,
    "$int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "$num": is_num,
    "$str": lambda v: isinstance(v, str),
    "$bool": lambda v: isinstance(v, bool),
    "$uuid": lambda v: isinstance(v, str) and bool(UUID_RE.match(v)),
    "$ts": lambda v: is_num(v) and 1.5e12 < v < 4e12,
}


def diff(want: Any, got: Any, path: str = "$") -> list[str]:
    """Differences between an expected subset and a value; empty when it matches."""
    if isinstance(want, str) and want == "$absent":
        return [] if got is MISSING else [f"{path}: expected no such key, got {brief(got)}"]
    if got is MISSING:
        return [f"{path}: missing (expected {brief(want)})"]
    if isinstance(want, str) and want in SIMPLE:
        return [] if SIMPLE[want](got) else [f"{path}: expected {want}, got {brief(got)}"]
    if isinstance(want, dict):
        if len(want) == 1 and next(iter(want)).startswith("$"):
            return diff_operator(want, got, path)
        if not isinstance(got, dict):
            return [f"{path}: expected an object, got {brief(got)}"]
        return [d for k, w in want.items() for d in diff(w, got.get(k, MISSING), f"{path}.{k}")]
    if isinstance(want, list):
        if not isinstance(got, list) or len(want) != len(got):
            return [f"{path}: expected a list of {len(want)} {brief(want)}, got {brief(got)}"]
        return [d for i, (w, g) in enumerate(zip(want, got, strict=False)) for d in diff(w, g, f"{path}[{i}]")]
    same = want == got and isinstance(want, bool) == isinstance(got, bool)
    return [] if same else [f"{path}: expected {brief(want)}, got {brief(got)}"]


def diff_operator(want: dict, got: Any, path: str) -> list[str]:
    op, arg = next(iter(want.items()))

    def found(item):
        return isinstance(got, list) and any(not diff(item, g) for g in got)

    holds = {
        "$re": lambda: isinstance(got, str) and re.search(arg, got),
        "$in": lambda: any(not diff(a, got) for a in arg),
        "$gte": lambda: is_num(got) and got >= arg,
        "$lte": lambda: is_num(got) and got <= arg,
        "$len": lambda: isinstance(got, (list, str, dict)) and len(got) == arg,
        "$contains": lambda: all(found(a) for a in arg),
        "$lacks": lambda: isinstance(got, list) and not any(found(a) for a in arg),
        "$set": lambda: isinstance(got, list) and len(got) == len(arg) and all(found(a) for a in arg),
    }
    if op not in holds:
        raise ValueError(f"unknown operator {op}")
    return [] if holds[op]() else [f"{path}: expected {brief(want)}, got {brief(got)}"]


def brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 300 else text[:300] + "..."


def fill(node: Any, variables: dict[str, Any]) -> Any:
    """Replace ${var}; a string that is exactly one variable keeps the variable's type."""
    if isinstance(node, str):
        whole = VAR_RE.fullmatch(node)
        if whole:
            return variables[whole.group(1)]
        return VAR_RE.sub(lambda m: str(variables[m.group(1)]), node)
    if isinstance(node, dict):
        return {fill(k, variables): fill(v, variables) for k, v in node.items()}
    if isinstance(node, list):
        return [fill(v, variables) for v in node]
    return node


def dig(node: Any, path: str) -> Any:
    for part in path.split("."):
        node = node[int(part)] if isinstance(node, list) else node[part]
    return node


class Reply:
    """An HTTP response reduced to what an expectation can speak about."""

    def __init__(self, status: int, headers: dict[str, str], text: str, ms: float):
        self.status, self.headers, self.text, self.ms = status, headers, text, ms
        try:
            self.json: Any = json.loads(text)
        except ValueError:
            self.json = MISSING

    def check(self, expect: dict) -> None:
        problems: list[str] = []
        if "status" in expect:
            allowed = expect["status"] if isinstance(expect["status"], list) else [expect["status"]]
            if self.status not in allowed:
                problems.append(f"status: expected {expect['status']}, got {self.status} {self.text[:200]!r}")
        if "json" in expect:
            problems += diff(expect["json"], self.json)
        if "text" in expect:
            problems += diff(expect["text"], self.text, "text")
        for name, want in expect.get("headers", {}).items():
            problems += diff(want, self.headers.get(name.lower(), MISSING), f"header {name}")
        if "ms" in expect:
            low, high = expect["ms"]
            if not low <= self.ms <= high:
                problems.append(f"elapsed: expected {low}..{high} ms, got {self.ms:.0f} ms")
        if problems:
            raise Mismatch("; ".join(problems))


class Case:
    """One running case: its variables, background requests and open streams."""

    def __init__(self, spec: dict, session: aiohttp.ClientSession, base: str, token: str | None):
        self.spec, self.session, self.base, self.token = spec, session, base.rstrip("/"), token
        unique = secrets.token_hex(5)
        self.vars: dict[str, Any] = {"q": f"cf-{unique}", "q2": f"cg-{unique}", "u": unique, "token": token or ""}
        self.background: dict[str, asyncio.Task] = {}
        self.sockets: dict[str, aiohttp.ClientWebSocketResponse] = {}
        self.inbox: dict[str, asyncio.Queue] = {}
        self.readers: list[asyncio.Task] = []

    async def run(self) -> None:
        try:
            for index, step in enumerate(self.spec["steps"]):
                try:
                    await self.step(step)
                except Mismatch as error:
                    what = step.get("path") or next(iter(step.items()))
                    raise Mismatch(f"step {index} ({step.get('method', '')} {what}): {error}") from None
                except (TimeoutError, aiohttp.ClientError, KeyError, IndexError, TypeError, OSError) as error:
                    raise Mismatch(f"step {index} {brief(step)}: {type(error).__name__}: {error}") from None
        finally:
            await self.close()

    async def close(self) -> None:
        tasks = [*self.background.values(), *self.readers]
        for task in tasks:
            task.cancel()
        for socket in self.sockets.values():
            if not socket.closed:
                await socket.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    def headers(self, step: dict) -> dict[str, str]:
        headers = dict(fill(step.get("headers", {}), self.vars))
        if self.token and step.get("auth", True) and "Authorization" not in headers:
            headers["Authorization"] = f"Bearer {self.token}"
        return headers

    async def step(self, step: dict) -> None:
        if "sleep" in step:
            await asyncio.sleep(step["sleep"])
        elif "join" in step:
            self.settle(step, await self.background.pop(step["join"]))
        elif "ws_open" in step:
            await self.open_socket(step)
        elif "ws_send" in step:
            raw = step.get("raw")
            await self.sockets[step["ws_send"]].send_str(
                raw if raw is not None else json.dumps(fill(step["body"], self.vars))
            )
        elif "ws_close" in step:
            await self.sockets[step["ws_close"]].close()
        elif "sse_open" in step:
            await self.open_stream(step)
        elif "ws_recv" in step or "sse_recv" in step:
            await self.receive(step, step.get("ws_recv") or step["sse_recv"])
        elif "ws_none" in step:
            await self.receive_none(step, step["ws_none"])
        elif "bg" in step:
            self.background[step["bg"]] = asyncio.create_task(self.request(step))
            await asyncio.sleep(0.05)
        else:
            await self.http(step)

    async def http(self, step: dict) -> None:
        deadline = time.monotonic() + step.get("retry", 0)
        while True:
            reply = await self.request(step)
            try:
                return self.settle(step, reply)
            except Mismatch:
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(0.05)

    def settle(self, step: dict, reply: Reply) -> None:
        reply.check(fill(step.get("expect", {}), self.vars))
        for name, path in step.get("save", {}).items():
            self.vars[name] = dig(reply.json, path)

    async def request(self, step: dict) -> Reply:
        headers, data = self.headers(step), None
        if "raw" in step:
            data = step["raw"].encode()
        elif "body" in step:
            data = json.dumps(fill(step["body"], self.vars)).encode()
        if data is not None:
            headers.setdefault("Content-Type", "application/json")
        start = time.monotonic()
        async with self.session.request(
            step["method"], self.base + fill(step["path"], self.vars), data=data, headers=headers
        ) as response:
            text = await response.text()
        low = {k.lower(): v for k, v in response.headers.items()}
        return Reply(response.status, low, text, (time.monotonic() - start) * 1000)

    async def open_socket(self, step: dict) -> None:
        name = step["ws_open"]
        socket = await self.session.ws_connect(self.base + fill(step["path"], self.vars), headers=self.headers(step))
        self.sockets[name], self.inbox[name] = socket, asyncio.Queue()

        async def read() -> None:
            async for message in socket:
                if message.type == aiohttp.WSMsgType.TEXT:
                    self.inbox[name].put_nowait(json.loads(message.data))

        self.readers.append(asyncio.create_task(read()))

    async def open_stream(self, step: dict) -> None:
        name, ready = step["sse_open"], asyncio.get_running_loop().create_future()
        self.inbox[name] = asyncio.Queue()

        async def read() -> None:
            async with self.session.get(
                self.base + fill(step["path"], self.vars),
                headers=self.headers(step),
                timeout=aiohttp.ClientTimeout(total=None),
            ) as response:
                low = {k.lower(): v for k, v in response.headers.items()}
                ready.set_result(Reply(response.status, low, "", 0))
                async for line in response.content:
                    text = line.decode().rstrip("\r\n")
                    if text.startswith("data:"):
                        self.inbox[name].put_nowait(json.loads(text[5:]))

        self.readers.append(asyncio.create_task(read()))
        (await asyncio.wait_for(ready, 5)).check(fill(step.get("expect", {}), self.vars))

    async def receive(self, step: dict, name: str) -> None:
        want, seen = fill(step["match"], self.vars), []
        deadline = time.monotonic() + step.get("timeout", 3)
        while True:
            try:
                message = await asyncio.wait_for(self.inbox[name].get(), max(0.001, deadline - time.monotonic()))
            except TimeoutError:
                raise Mismatch(f"no message matched {brief(want)}; saw {brief(seen[-6:])}") from None
            if not diff(want, message):
                for var, path in step.get("save", {}).items():
                    self.vars[var] = dig(message, path)
                return
            seen.append(message)

    async def receive_none(self, step: dict, name: str) -> None:
        want, deadline = fill(step["match"], self.vars), time.monotonic() + step.get("timeout", 0.4)
        while (left := deadline - time.monotonic()) > 0:
            try:
                message = await asyncio.wait_for(self.inbox[name].get(), left)
            except TimeoutError:
                return
            if not diff(want, message):
                raise Mismatch(f"unexpected message {brief(message)}")


def load(path: Path, only: set[str], case: str | None) -> list[dict]:
    specs = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return [s for s in specs if (not only or s["group"] in only) and (not case or s["id"] == case)]


async def replay(specs: list[dict], base: str, token: str | None, jobs: int) -> list[dict]:
    gate, results = asyncio.Semaphore(jobs), []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=90)) as session:

        async def one(spec: dict) -> None:
            needs = spec.get("needs", [])
            if ("token" in needs and not token) or ("no-token" in needs and token):
                results.append({"id": spec["id"], "group": spec["group"], "result": "skip"})
                return
            async with gate:
                outcome = {"id": spec["id"], "group": spec["group"], "result": "pass"}
                try:
                    await Case(spec, session, base, token).run()
                except Mismatch as error:
                    outcome |= {"result": "fail", "error": str(error)}
                results.append(outcome)

        await asyncio.gather(*(one(spec) for spec in specs))
    return results


def report(results: list[dict], verbose: bool) -> int:
    tally: dict[str, dict[str, int]] = defaultdict(lambda: {"pass": 0, "fail": 0, "skip": 0})
    for item in results:
        tally[item["group"]][item["result"]] += 1
    for item in sorted(results, key=lambda r: (r["group"], r["id"])):
        if item["result"] == "fail":
            print(f"FAIL {item['group']}/{item['id']}\n     {item['error']}")
        elif verbose:
            print(f"{item['result']:4} {item['group']}/{item['id']}")
    print(f"{'group':<16}{'pass':>6}{'fail':>6}{'skip':>6}")
    for group in sorted(tally):
        print(f"{group:<16}" + "".join(f"{tally[group][k]:>6}" for k in ("pass", "fail", "skip")))
    total = {k: sum(t[k] for t in tally.values()) for k in ("pass", "fail", "skip")}
    print(f"{'total':<16}" + "".join(f"{total[k]:>6}" for k in ("pass", "fail", "skip")))
    return total["fail"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Replay conformance cases against a job-queue server.")
    parser.add_argument("--base", default="http://127.0.0.1:6790")
    parser.add_argument("--token")
    parser.add_argument("--file", type=Path, default=Path(__file__).with_name("bunqueue.jsonl"))
    parser.add_argument("--only", default="", help="comma-separated groups")
    parser.add_argument("--case", help="one case id")
    parser.add_argument("--jobs", type=int, default=8, help="cases run at once")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("-v", "--verbose", action="store_true")
    args = parser.parse_args()
    specs = load(args.file, {g for g in args.only.split(",") if g}, args.case)
    results = asyncio.run(replay(specs, args.base, args.token, args.jobs))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    return 1 if report(results, args.verbose) else 0


if __name__ == "__main__":
    sys.exit(main())
