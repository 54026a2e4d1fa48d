"""The file of tokens: one JSON object a line, read by nodes and written by `quorumq tokens`.

A line holds the SHA-256 digest of a token, never the token. Tokens are 256 random bits, so that nobody finds one by trying,
however fast the digest; a slow one, made for passwords, would only make every request slow.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

PREFIX = "qmq_"
SECRET_BYTES = 32
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
TOKENS_MAX = 10_000
FILE_BYTES_MAX = 16 << 20
PATTERN_CHARS_MAX = 256
ABOUT = "# Tokens of quorumq: one a line. Made with `quorumq tokens create`; the tokens themselves are not in here.\n"

Right = Literal["produce", "consume", "read", "manage:all", "admin", "metrics"]
RIGHTS: tuple[Right, ...] = get_args(Right)
Moment = Annotated[datetime, Meta(tz=True)]


class BadTokens(Exception):
    """A file of tokens that cannot be used; the message says where and why, and quotes nothing of it."""


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One token.

    name: for the audit, and to revoke it by.  sha256: of the token, 64 hexadecimal digits.  queues: patterns, in which `*`
    stands for any text.  created, expires: in UTC; expires: from then on it is no token.
    """

    name: Annotated[str, Meta(pattern=f"^{NAME.pattern}$")]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    rights: Annotated[tuple[Right, ...], Meta(min_length=1)]
    queues: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=PATTERN_CHARS_MAX)], ...], Meta(min_length=1)
    ] = ("*",)
    created: Moment | None = None
    expires: Moment | None = None


LINE = msgspec.json.Decoder(Token)


def parse(content: bytes) -> list[Token]:
    """Read tokens from the content of a file; empty lines and those with # before them say nothing. Raises BadTokens."""
    tokens: list[Token] = []
    names: set[str] = set()
    digests: set[str] = set()
    # Some editors write a mark before a text that is UTF-8.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        line = line.strip()
        if not line or line.startswith(b"#"):
            continue
        try:
            token = LINE.decode(line)
        except msgspec.ValidationError as error:
            raise BadTokens(f"line {number}: {error}") from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise BadTokens(f"line {number} is no JSON object") from None
        if token.name in names or token.sha256 in digests:
            raise BadTokens(f"line {number} is there twice: its name or its digest")
        names.add(token.name)
        digests.add(token.sha256)
        tokens.append(token)
        if len(tokens) > TOKENS_MAX:
            raise BadTokens(f"more than {TOKENS_MAX:,} tokens")
    return tokens


def read(path: Path) -> list[Token]:
    """Read a file of tokens. Raises BadTokens."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise BadTokens(f"it cannot be read: {error.strerror or type(error).__name__}") from None
    if len(content) > FILE_BYTES_MAX:
        raise BadTokens(f"it is longer than {FILE_BYTES_MAX:,} bytes")
    return parse(content)


def digest(secret: str) -> str:
    """Return what the file holds of a token."""
    return hashlib.sha256(secret.encode()).hexdigest()


def make(name: str, rights: Sequence[str], queues: Sequence[str], expires: datetime | None = None) -> tuple[str, Token]:
    """Make a token: the secret, which is shown once, and the record of it. Raises BadTokens."""
    secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    fields = {"name": name, "sha256": digest(secret), "rights": rights, "queues": queues, "created": now()}
    try:
        return secret, msgspec.convert({**fields, "expires": expires}, Token)
    except msgspec.ValidationError as error:
        raise BadTokens(str(error)) from None


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def change(path: Path, made: Callable[[list[Token]], list[Token]]) -> None:
    """Read a file, change what it holds and put the new file in its place at once; a file that is not there is empty.

    Two of these at a time wait for each other. Comments do not survive. Raises BadTokens, OSError, and what `made` raises.
    """
    with alone(path.parent):
        tokens = read(path) if path.exists() else []
        lines = [msgspec.json.encode(token) for token in made(tokens)]
        replace(path, b"\n".join([ABOUT.rstrip().encode(), *lines, b""]))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder against others who change its files in this way."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def replace(path: Path, content: bytes) -> None:
    """Put a file in the place of another in one step, readable by its owner only; nobody ever sees half of it."""
    # A link stays one: what it leads to is replaced.
    path = path.resolve()
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    new = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # The owner stays who it was, so that a node under another name can go on reading it.
        if path.exists():
            before = path.stat()
            if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                os.chown(new, before.st_uid, before.st_gid)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
