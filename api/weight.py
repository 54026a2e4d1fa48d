"""How much a large body may hold, found out before it is decoded.

A decoder makes an object of every item, whatever the item is: sixteen megabytes of `{},` are five million jobs, three seconds in
which nothing else runs, and a gigabyte. Here only commas are counted, and only in a body that has many of them.
"""

from __future__ import annotations

import re

from .errors import Invalid
from .values import BATCH_MAX

# A body with fewer is decoded in an unnoticeable time, whatever it holds.
COMMAS_FREE = 100_000
# Of all jobs of a request together: fields, dependencies, tags. Ten thousand jobs with every option have fewer.
COMMAS_MAX = 400_000
TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)
QUOTE, COMMA, OPENING, LIST = ord('"'), ord(","), frozenset(b"[{"), ord("[")
# Values that are kept as they were sent, so that what they hold is not looked at.
OPAQUE = frozenset({b'"data"', b'"result"'})
# A list of such values.
OPAQUE_ITEMS = b'"results"'


def weigh(body: bytes) -> None:
    """Check how much a body holds: an object with lists, or a list. What is no JSON is somebody else's to say.

    It takes up to a second for a body of sixteen megabytes, in steps of Python's: not for the loop.  Raises Invalid.
    """
    if body.count(b",") <= COMMAS_FREE:
        return
    # The depth of what is listed in a request: jobs, ids.
    listed = 1 if body.lstrip()[:1] == b"[" else 2
    depth = items = commas = 0
    # The depth at which a value began that is not looked at, and what may be such a value's name.
    skipping = shallow = 0
    key = b""
    for match in TOKEN.finditer(body):
        sign = body[match.start()]
        if sign == QUOTE:
            if not skipping:
                key = match[0]
        elif sign == COMMA:
            key = b""
            if skipping or (shallow and depth > shallow):
                continue
            commas += 1
            if depth == listed:
                items += 1
            if items >= BATCH_MAX:
                raise Invalid(f"A list of a request must have at most {BATCH_MAX} items")
            if commas > COMMAS_MAX:
                raise Invalid(f"A request must have at most {COMMAS_MAX} fields and list items together")
        elif sign in OPENING:
            depth += 1
            if depth == listed and sign == LIST:
                items = 0
            if not skipping and key in OPAQUE:
                skipping = depth
            elif key == OPAQUE_ITEMS and depth == listed:
                shallow = depth
            key = b""
        else:
            if depth == skipping:
                skipping = 0
            if depth == shallow:
                shallow = 0
            depth -= 1
            key = b""
