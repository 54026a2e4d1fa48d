#!/usr/bin/env python3
"""Replays HTTP conformance cases (one JSON object a line) against a job-queue server.

    replay_proxy.py --base http://127.0.0.1:8080 --token T [--file bullmq-proxy.jsonl]
                    [--group G] [--id ID] [--settle-ms N] [--var name=value ...] [-v]

BullMQ Proxy itself needs --settle-ms 500: it loses the second of two changes of its workers that come
close together, so that a worker registered right after another was removed never starts.

A case:  {"id", "group", "note"?, "clash"?, "needs"?: [variable...], "endpoint"?: [response...], "steps": [step...]}
A case that needs a variable which --var does not give is skipped; "clash" says where bunqueue's
dialect gives the same request another meaning, for the reader only.
A step is one of
  {"method", "path", "headers"?, "auth"?, "body"? | "raw"?, "save"?: {var: "json.path"}, "within_ms"?, "expect"?}
  {"sleep_ms": n}
  {"calls": {"count"? | "min"?, "items"?: [expectation...]}, "within_ms"?}      what the worker endpoint received
"auth" replaces the bearer token; null sends no Authorization header. "within_ms" repeats the step
until its expectation holds or the time is up.

"endpoint" scripts the local worker endpoint, whose URL is ${endpoint}: its nth call gets the nth
response, and the last one is repeated. A response: {"status"?, "json"? | "text"?, "headers"?,
"delay_ms"?, "callbacks"?: [{"method", "path", "body", "auth"?}]}. Callbacks are sent to the server
under test before the answer, by default with the token of the delivered call; ${job.id} and
${token} are set for them.

Variables: ${q} (a queue name fresh for the case), ${endpoint}, ${base}, and whatever was saved.
Expectations: "status" (an int, or a list of ints), "json" (a subset of the body), "text" (the exact
body). Placeholders in them: "$any", "$int", "$num", "$str", "$bool", "$absent", "$nonempty",
{"$re": pattern}, {"$len": n}, {"$ge": n}, {"$le": n}, {"$contains": x}, {"$keys": [...]}. A list must have the same
length as the one expected, item by item.
"""

import argparse
import asyncio
import json
import pathlib
import re
import sys
import time
import uuid

import aiohttp
from aiohttp import web

ABSENT = object()


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


PLACEHOLDERS = {
    "$any": lambda v: v is not ABSENT,
    "$int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "$num": is_number,
    "$str": lambda v: isinstance(v, str),
    "$bool": lambda v: isinstance(v, bool),
    "$absent": lambda v: v is ABSENT,
    "$nonempty": lambda v: v is not ABSENT and bool(v),
}
OPERATORS = {
    "$re": lambda v, arg: isinstance(v, str) and re.search(arg, v) is not None,
    "$len": lambda v, arg: isinstance(v, (list, str, dict)) and len(v) == arg,
    "$ge": lambda v, arg: is_number(v) and v >= arg,
    "$le": lambda v, arg: is_number(v) and v <= arg,
    "$contains": lambda v, arg: isinstance(v, list) and any(not diff(arg, item) for item in v),
    "$keys": lambda v, arg: isinstance(v, dict) and sorted(v) == sorted(arg),
}


def show(value):
    if value is ABSENT:
        return "<absent>"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else text[:300] + "..."


def diff(expected, actual, path="$"):
    """Every way in which `actual` does not satisfy `expected`, as text lines."""
    if isinstance(expected, str) and expected in PLACEHOLDERS:
        if PLACEHOLDERS[expected](actual):
            return []
        return [f"{path}: expected {expected}, got {show(actual)}"]
    if isinstance(expected, dict):
        if len(expected) == 1 and next(iter(expected)) in OPERATORS:
            name, arg = next(iter(expected.items()))
            if OPERATORS[name](actual, arg):
                return []
            return [f"{path}: expected {name} {show(arg)}, got {show(actual)}"]
        if not isinstance(actual, dict):
            return [f"{path}: expected an object, got {show(actual)}"]
        return [
            line for key, value in expected.items() for line in diff(value, actual.get(key, ABSENT), f"{path}.{key}")
        ]
    if isinstance(expected, list):
        if not isinstance(actual, list):
            return [f"{path}: expected a list, got {show(actual)}"]
        if len(expected) != len(actual):
            return [f"{path}: expected {len(expected)} items, got {len(actual)}: {show(actual)}"]
        return [
            line
            for i, (want, got) in enumerate(zip(expected, actual, strict=False))
            for line in diff(want, got, f"{path}[{i}]")
        ]
    same = (
        expected is actual
        if type(expected) is bool or type(actual) is bool
        else actual is not ABSENT and expected == actual
    )
    return [] if same else [f"{path}: expected {show(expected)}, got {show(actual)}"]


def lookup(document, path):
    for part in path.split("."):
        document = document[int(part)] if isinstance(document, list) else document[part]
    return document


def fill(value, variables):
    """Replaces ${name} in every string of a JSON value; a string that is one variable keeps its type."""
    if isinstance(value, str):
        whole = re.fullmatch(r"\$\{([\w.]+)\}", value)
        if whole and whole[1] in variables:
            return variables[whole[1]]
        return re.sub(
            r"\$\{([\w.]+)\}",
            lambda m: str(variables[m[1]]) if m[1] in variables else m[0],
            value,
        )
    if isinstance(value, list):
        return [fill(item, variables) for item in value]
    if isinstance(value, dict):
        return {fill(key, variables): fill(item, variables) for key, item in value.items()}
    return value


class Target:
    """The server under test."""

    def __init__(self, session, base, token):
        self.session, self.base, self.token = session, base.rstrip("/"), token

    async def send(self, step):
        headers = {}
        token = step.get("auth", self.token)
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        data = step.get("raw")
        if "body" in step:
            data = json.dumps(step["body"])
        if data is not None:
            headers["Content-Type"] = "application/json"
        headers.update(step.get("headers", {}))
        url = self.base + step["path"]
        async with self.session.request(step["method"], url, data=data, headers=headers) as response:
            return response.status, await response.text()


def check_response(expect, status, text):
    wanted = expect.get("status")
    lines = []
    if wanted is not None and status not in (wanted if isinstance(wanted, list) else [wanted]):
        lines.append(f"status: expected {wanted}, got {status}")
    if "text" in expect:
        lines += diff(expect["text"], text, "text")
    if "json" in expect:
        try:
            lines += diff(expect["json"], json.loads(text))
        except ValueError:
            lines.append("body is not JSON")
    if lines:
        lines.append(f"body was: {text[:300]!r}")
    return lines


class Endpoint:
    """The local HTTP server that plays the worker: one script of responses a case, all calls recorded."""

    def __init__(self, target):
        self.target, self.cases, self.runner, self.url = target, {}, None, ""

    async def start(self):
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{case}{rest:.*}", self.handle)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    def open(self, key, responses):
        self.cases[key] = {"responses": responses or [{}], "calls": []}
        return f"{self.url}/{key}"

    async def handle(self, request):
        case = self.cases.get(request.match_info["case"])
        if case is None:
            return web.Response(status=410)
        text = await request.text()
        try:
            body = json.loads(text)
        except ValueError:
            body = None
        call = {
            "at_ms": int(time.time() * 1000),
            "method": request.method,
            "path": request.match_info["rest"],
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "json": body,
            "callbacks": [],
        }
        script = case["responses"]
        response = script[min(len(case["calls"]), len(script) - 1)]
        case["calls"].append(call)
        if response.get("callbacks"):
            variables = {
                "job.id": body["job"]["id"],
                "token": body["token"],
                "q": request.match_info["case"],
            }
            for callback in fill(response["callbacks"], variables):
                status, answer = await self.target.send({"auth": body["token"], **callback})
                call["callbacks"].append({"status": status, "text": answer})
        await asyncio.sleep(response.get("delay_ms", 0) / 1000)
        options = {"status": response.get("status", 200), "headers": response.get("headers")}
        if "text" in response:
            return web.Response(text=response["text"], **options)
        if "json" in response:
            return web.json_response(response["json"], **options)
        return web.Response(**options)


async def run_step(step, target, endpoint, key, variables):
    """Runs one step until it passes or its time is up; returns what differs."""
    if "sleep_ms" in step:
        await asyncio.sleep(step["sleep_ms"] / 1000)
        return []
    deadline = time.monotonic() + step.get("within_ms", 0) / 1000
    while True:
        ready = fill(step, variables)
        if "calls" in step:
            calls, want = endpoint.cases[key]["calls"], ready["calls"]
            lines = []
            if "count" in want and len(calls) != want["count"]:
                lines.append(f"calls: expected {want['count']}, got {len(calls)}")
            if len(calls) < want.get("min", 0):
                lines.append(f"calls: expected at least {want['min']}, got {len(calls)}")
            if "items" in want:
                lines += diff(want["items"], calls[: len(want["items"])], "calls")
        else:
            status, text = await target.send(ready)
            lines = check_response(ready.get("expect", {}), status, text)
            if not lines:
                for name, path in ready.get("save", {}).items():
                    variables[name] = lookup(json.loads(text), path)
        if not lines or time.monotonic() >= deadline:
            return lines
        await asyncio.sleep(0.03)


async def run_case(case, target, endpoint, settle, given):
    key = "q" + uuid.uuid4().hex[:12]
    variables = {**given, "q": key, "base": target.base, "endpoint": endpoint.open(key, case.get("endpoint"))}
    try:
        for number, step in enumerate(case["steps"], 1):
            try:
                lines = await run_step(step, target, endpoint, key, variables)
            except (TimeoutError, aiohttp.ClientError, KeyError, IndexError, ValueError) as error:
                lines = [f"{type(error).__name__}: {error}"]
            if lines:
                what = f"{step.get('method', '')} {step.get('path', '')}".strip() or "calls"
                return [f"step {number} ({what})", *("    " + line for line in lines)]
        return []
    finally:
        if "endpoint" in case:
            await target.send({"method": "DELETE", "path": f"/workers/{key}"})
            await asyncio.sleep(settle)


async def main():
    parser = argparse.ArgumentParser(description="Replays conformance cases against a server.")
    parser.add_argument("--base", required=True)
    parser.add_argument("--token", required=True)
    here = pathlib.Path(__file__).resolve().parent
    parser.add_argument("--file", default=here / "bullmq-proxy.jsonl")
    parser.add_argument("--group")
    parser.add_argument("--id")
    parser.add_argument("--var", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--settle-ms", type=int, default=0, help="pause after removing a case's worker")
    parser.add_argument("-v", "--verbose", action="store_true")
    args = parser.parse_args()

    with open(args.file, encoding="utf-8") as lines:
        cases = [json.loads(line) for line in lines if line.strip()]
    cases = [case for case in cases if args.group in (None, case["group"]) and args.id in (None, case["id"])]
    given = dict(item.split("=", 1) for item in args.var)
    skipped = [case for case in cases if not given.keys() >= set(case.get("needs", []))]
    cases = [case for case in cases if case not in skipped]
    groups, failed = {}, 0
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        target = Target(session, args.base, args.token)
        endpoint = Endpoint(target)
        await endpoint.start()
        for case in cases:
            lines = await run_case(case, target, endpoint, args.settle_ms / 1000, given)
            passed, total = groups.get(case["group"], (0, 0))
            groups[case["group"]] = (passed + (not lines), total + 1)
            failed += bool(lines)
            if lines:
                print(f"FAIL {case['group']}/{case['id']}: " + "\n  ".join(lines))
            elif args.verbose:
                print(f"ok   {case['group']}/{case['id']}")
        await endpoint.runner.cleanup()
    for group, (passed, total) in groups.items():
        print(f"{group:24} {passed}/{total}")
    print(f"{'total':24} {len(cases) - failed}/{len(cases)}", f"({len(skipped)} skipped)" if skipped else "")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
