"""Every command and example of the README and of docs/getting-started.md runs, and answers what stands below it.

As written, but for what would disturb this machine: ports, folders and host names are others, and what goes on until it is stopped
(a cluster, a node, a worker) is stopped once it has done what it is there for. A line `# {…}` is the answer to the command above
it, in which … stands for anything.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from quorumq.cli.admin import NoAnswer, fetch
from tests.support.dev_command import Dev, dev
from tests.support.local_cluster import HOST, free_ports

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Commands that other tests run, or that are this one.
ELSEWHERE = {
    "scripts/test": "this",
    "python3 -m venv .venv": "tests/packaging/test_wheel.py, which asks no package index",
    ".venv/bin/pip install --require-hashes -r requirements.lock": "the same",
    ".venv/bin/pip install --no-deps .": "the same",
}
ANSWER = re.compile(r"# ?([\[{].*)")
MARK = "--- end of command"
DONE_S = 60.0

pytestmark = pytest.mark.timeout(240)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the document where it begins."""

    language: str
    text: str
    line: int


def blocks(document: Path) -> list[Block]:
    text = document.read_text("utf-8")
    return [Block(found[1], found[2], text.count("\n", 0, found.start()) + 1) for found in FENCE.finditer(text)]


def commands(text: str) -> list[tuple[str, str]]:
    """Split a block into commands, each with the answer that stands below it; empty where there is none."""
    found: list[tuple[str, str]] = []
    whole = ""
    for line in text.splitlines():
        if (answer := ANSWER.fullmatch(line)) and found:
            found[-1] = (found[-1][0], answer[1])
            continue
        whole += re.sub(r" +# .*$", "", line) + "\n"
        if not line.endswith("\\"):
            found += [(whole.strip(), "")] if whole.strip() else []
            whole = ""
    return found


def pattern(answer: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, answer.split("…"))), re.DOTALL)


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DONE_S):
        while not await check():
            await asyncio.sleep(0.05)


class Reader:
    """Somebody who does what a document says, from its first block to its last."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.cluster: AsyncExitStack | None = None
        self.token: str | None = None
        self.file: Path | None = None
        self.ports: dict[str, str] = {}
        # Processes of `quorumq serve`, and the paths and addresses that they go by here.
        self.single, *self.machines = free_ports(8)
        self.rewrites = {
            "/etc/quorumq": str(folder / "etc" / "quorumq"),
            "/var/lib/quorumq": str(folder / "var"),
            "http://queue-1.internal:6790": f"http://{HOST}:{self.machines[0]}",
            ".venv/bin/python": sys.executable,
            ".venv/bin/quorumq": f"{sys.executable} -m quorumq",
            "data/dev": str(folder / "dev"),
        }
        for number in (1, 2, 3):
            self.rewrites[f"queue-{number}.internal:7790"] = f"{HOST}:{self.machines[2 + number]}"
        (folder / "etc" / "quorumq").mkdir(parents=True)

    def here(self, text: str) -> str:
        """Put what is used here in place of what the document names."""
        for written, used in (self.rewrites | self.ports).items():
            text = text.replace(written, used)
        return re.sub(r"^quorumq ", f"{sys.executable} -m quorumq ", text, flags=re.MULTILINE)

    async def do(self, block: Block) -> None:
        """Do what a block says."""
        if block.language == "sh":
            await self.shell(commands(block.text))
        elif block.language == "python":
            await self.work(["-c", self.here(block.text)])
        elif block.language == "toml":
            name = re.match(r"# (/etc/\S+)", block.text)
            assert name, "a settings file without its name"
            self.file = Path(self.here(name[1]))
            self.file.write_text(self.here(block.text), "utf-8")
        else:
            raise AssertionError(f"nobody knows how to run {block.language or 'a block without a language'}")

    async def shell(self, given: list[tuple[str, str]]) -> None:
        """Run commands in one shell, and hold what they print against what is written below them."""
        todo: list[tuple[str, str]] = []
        for command, answer in given:
            if command in ELSEWHERE:
                continue
            if re.fullmatch(r"(\w+=\w+ )?scripts/up\b.*", command):
                await self.up(command)
            elif command.startswith("quorumq serve"):
                await self.run(todo)
                todo = []
                await self.serve(command)
            elif "examples/" in command:
                await self.work(shlex.split(self.here(command))[1:])
            else:
                todo.append((command, answer))
        await self.run(todo)

    async def run(self, given: list[tuple[str, str]]) -> None:
        script = "".join(f"{self.here(command)}\nended=$?; echo; echo '{MARK}' $ended\n" for command, _ in given)
        # Where `quorumq status` asks by default.
        port = self.ports.get("6790", str(self.single))
        environment = os.environ | {"QUORUMQ_URL": f"http://{HOST}:{port}"}
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", script),
            cwd=ROOT,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output = (await process.communicate())[0].decode()
        parts = re.split(rf"\n{MARK} (\d+)\n", output)
        assert len(parts) == 2 * len(given) + 1, output
        for (command, answer), said, status in zip(given, parts[::2], parts[1::2], strict=False):
            assert status == "0", f"{command}\nended with {status}:\n{said}"
            assert pattern(answer).search(said), f"{command}\nshould answer {answer}\nand said {said}"

    async def up(self, command: str) -> None:
        """Start the cluster in place of the one before."""
        if self.cluster is not None:
            await self.cluster.aclose()
        self.cluster = await self.stack.enter_async_context(AsyncExitStack())
        *settings, _, options = command.partition("scripts/up")
        given = dict(one.split("=", 1) for one in settings[0].split())
        self.token = given.get("AUTH_TOKENS")
        running: Dev = await self.cluster.enter_async_context(
            dev(self.folder / "dev", *shlex.split(options), settings=given)
        )
        self.cluster.push_async_callback(interrupted, running)
        await running.says(r"Ctrl-C stops them")
        self.ports = {str(6790 + i): str(running.http_port + i) for i in range(3)}
        self.ports |= {str(8080 + i): str(running.http_port + 3 + i) for i in range(3)}

    async def serve(self, command: str) -> None:
        """Start one node, or with the settings file of several machines all of these, until all are ready."""
        nodes: list[tuple[list[str], int, int]] = []
        words = shlex.split(self.here(command))[3:]
        if "--config" in words:
            assert self.file is not None
            text = self.file.read_text("utf-8")
            for i in (1, 2, 3):
                own = self.file.with_name(f"n{i}.toml")
                own.write_text(text.replace('node_id = "n1"', f'node_id = "n{i}"').replace("/var", f"/var{i}"), "utf-8")
                nodes.append((["serve", "--config", str(own)], self.machines[i - 1], self.machines[2 + i]))
        else:
            nodes.append((words, self.single, self.machines[6]))
        for arguments, http_port, peer_port in nodes:
            ports = {
                "HTTP_PORT": str(http_port),
                "BULLMQ_PORT": "off",
                "TCP_PORT": "off",
                "PEER_PORT": str(peer_port),
                "HOST": HOST,
            }
            await self.stack.enter_async_context(process([*("-m", "quorumq"), *arguments], ports))
        for _, http_port, _ in nodes:
            await until(lambda port=http_port: ready(port))  # type: ignore[misc]

    async def work(self, arguments: list[str]) -> None:
        """Run a worker until it has done everything."""

        async def done() -> bool:
            url = f"http://{HOST}:{self.ports['6790']}/queues/emails/counts"
            counts = (await asyncio.to_thread(fetch, url, token=self.token))[1]["counts"]
            return counts["completed"] > before and not any(
                counts[state] for state in ("waiting", "prioritized", "active")
            )

        url = f"http://{HOST}:{self.ports['6790']}/queues/emails/counts"
        before = (await asyncio.to_thread(fetch, url, token=self.token))[1]["counts"]["completed"]
        async with process(arguments, {}):
            await until(done)


async def interrupted(running: Dev) -> None:
    """Press Ctrl-C, and wait until all nodes are gone."""
    if running.process.returncode is None:
        running.process.send_signal(signal.SIGINT)
        await running.ends()


async def ready(port: int) -> bool:
    try:
        return (await asyncio.to_thread(fetch, f"http://{HOST}:{port}/ready"))[0] == 200
    except NoAnswer:
        return False


@asynccontextmanager
async def process(arguments: list[str], settings: dict[str, str]) -> AsyncIterator[None]:
    """Run Python until it is no longer needed; that it ended before by itself is an error."""
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        cwd=ROOT,
        env=os.environ | settings,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield
        assert running.returncode is None, (await running.communicate())[0].decode()
    finally:
        if running.returncode is None:
            running.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(20):
                await running.communicate()
        finally:
            if running.returncode is None:
                running.kill()


async def read_through(document: Path, folder: Path) -> None:
    async with AsyncExitStack() as stack:
        reader = Reader(folder, stack)
        for block in blocks(document):
            try:
                await reader.do(block)
            except BaseException as error:
                error.add_note(f"in {document.relative_to(ROOT)}, line {block.line}")
                raise


async def test_every_example_of_getting_started_runs(tmp_path: Path) -> None:
    assert len(blocks(ROOT / "docs" / "getting-started.md")) >= 12
    await read_through(ROOT / "docs" / "getting-started.md", tmp_path)


async def test_every_example_of_the_readme_runs(tmp_path: Path) -> None:
    assert len(blocks(ROOT / "README.md")) >= 8
    await read_through(ROOT / "README.md", tmp_path)


# -- The reader himself ------------------------------------------------------------------------------------------------


def test_answers_belong_to_the_command_above_them() -> None:
    text = 'a -d \'{"x": 1}\'    # a remark\n# {"ok":true}\nb \\\n  c\nd\n# [1,…]\n'
    assert commands(text) == [("a -d '{\"x\": 1}'", '{"ok":true}'), ("b \\\n  c", ""), ("d", "[1,…]")]
    assert pattern('{"a":…}').search('{"a":1,"b":2}') and not pattern('{"a":…}').search('{"b":2}')


async def test_a_wrong_answer_and_a_failing_command_are_found(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        reader = Reader(tmp_path, stack)
        await reader.run([("echo '{\"a\":1}'", '{"a":…}'), ("true", "")])
        with pytest.raises(AssertionError, match="should answer"):
            await reader.run([("echo '{\"b\":1}'", '{"a":…}')])
        with pytest.raises(AssertionError, match="ended with 3"):
            await reader.run([("(exit 3)", "")])


def test_what_is_run_elsewhere_is_still_there() -> None:
    text = "".join((ROOT / name).read_text("utf-8") for name in ("README.md", "docs/getting-started.md"))
    there = {command for found in FENCE.finditer(text) for command, _ in commands(found[2])}
    assert set(ELSEWHERE) <= there
