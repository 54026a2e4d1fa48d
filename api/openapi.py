"""The OpenAPI 3.1 document of a listener, and the HTTP reference, both made from the tables of routes.

Nothing is described here by hand: sentences come from the catalogue's docstrings and from the rows, fields and bounds
from the types of bodies and replies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from quorumq.node.machine.operation import Operation

from .auth import API_KEY
from .once import HEADER, KEY_CHARS_MAX
from .reply import TEXT
from .request import Route
from .router import Dialect
from .rows import EventStream, Html, NotReady, Octets, Text, WebSocketUpgrade

Json = dict[str, Any]
REF = "#/components/schemas/"
TITLE = "quorumq"
ABOUT = """\
A job queue that survives the loss of machines. Every node answers every request. Replies of bunqueue's dialect are JSON objects with
`ok`, and with `error` when `ok` is false. BullMQ's dialect is under `/bullmq`, and on `BULLMQ_PORT` without that prefix; its errors are
plain text. Open Archiver's dialect is under `/v1/jobs`; its errors are JSON objects with `message`. When tokens are configured, requests
carry `Authorization: Bearer <token>`."""

ERRORS = {
    400: "The request cannot be accepted; `error` says why.",
    401: "No token, or one that is unknown, revoked or expired.",
    403: "The token lacks the right, or is not for this queue.",
    404: "There is no such thing.",
    409: "The request was done before under its `Idempotency-Key`; its reply was too large to be kept, or had to go since.",
    413: "The body is larger than BODY_BYTES_MAX, or too large for one log entry.",
    422: "The `Idempotency-Key` came with a different request before.",
    429: "Too many requests of this client; `Retry-After` says when to come back.",
    500: "A defect of the server; no change was made in part.",
    503: "No quorum, or the node is busy. `code` is `not_applied` when a repeat is safe, else `outcome_unknown`.",
}
# The same where errors are plain text.
TEXT_ERRORS = ERRORS | {
    400: "The request cannot be accepted; the text says why.",
    503: "No quorum, or the node is busy; `Retry-After` says when to come back.",
}
PARAMETERS = {
    "queue": ("Name of the queue.", {"type": "string", "pattern": "^[a-zA-Z0-9_.:-]+$", "maxLength": 256}),
    "id": ("Id of the job.", {"type": "string"}),
    "webhook_id": ("Id of the webhook.", {"type": "string"}),
    "worker_id": ("Id of the worker.", {"type": "string"}),
    "member": ("Id of the node.", {"type": "string"}),
    "custom_id": ("The `jobId` that the job was pushed with.", {"type": "string"}),
    "name": ("Name of the cron job.", {"type": "string"}),
    "group": ("The `groupId` of jobs.", {"type": "string"}),
    "type": ("How jobs ended.", {"type": "string", "enum": ["completed", "failed"]}),
    "unique_key": ("The `uniqueKey` of a job.", {"type": "string"}),
}
# Where a dialect's parameters are other than those above.
PARAMETERS_OF: dict[str, dict[str, tuple[str, Json]]] = {
    "bullmq": {
        "queue": (
            "Name of the queue: no colon, no control characters.",
            {"type": "string", "minLength": 3, "maxLength": 100},
        ),
        "id": ("Id of the job, unique in its queue.", {"type": "string"}),
        "key": ("Key of the repetition.", {"type": "string"}),
    },
    "openarchiver": {"queue": ("Name of the queue.", {"type": "string"})},
}
# How errors look where they are JSON of another form than `Failure`.
MESSAGE: Json = {
    "type": "object",
    "description": "Every error.",
    "properties": {
        "message": {"type": "string"},
        "status": {"type": "integer", "description": "429, with that status only."},
    },
    "required": ["message"],
}
MESSAGES: Mapping[str, Json] = {"openarchiver": {"application/json": {"schema": {"$ref": f"{REF}ArchiverError"}}}}
# What Python calls otherwise than JSON does.
JSON_WORDS = {"None": "null", "True": "true", "False": "false"}
PYTHON_WORDS = re.compile(r"\b(?:None|True|False)\b")
OF_METRICS: list[Json] = [{}, {"token": []}]
# How connections that last show a token.
OF_SOCKETS = (
    "When tokens are configured: a handshake with a token that is not known is 401; one without a token is let in and has ten seconds "
    "for the command `Auth`. Each command needs the right of the request that it stands for, `Subscribe` the right `read`."
)
# What a token has to be for, besides having a right.
SCOPES = {"queue": " on the queue", "job": " on the job's queue", "every": " on all queues"}


class ServedRoute(msgspec.Struct, frozen=True):
    """A route with the whole path under which a listener serves it."""

    path: str
    route: Route
    dialect: Dialect


def served(dialects: Iterable[tuple[Dialect, str]]) -> list[ServedRoute]:
    """Return every route in the order of the tables."""
    return [
        ServedRoute(prefix + route.path, route, dialect) for dialect, prefix in dialects for route in dialect.routes
    ]


def document(dialects: Iterable[tuple[Dialect, str]], version: str) -> Json:
    """Make the whole document."""
    rows = served(dialects)
    shown: list[Any] = [kind for row in rows for kind in (row.route.takes, row.route.reply) if is_json(kind)]
    types = list(dict.fromkeys([*shown, NotReady]))
    references, schemas = msgspec.json.schema_components(types, ref_template=REF + "{name}")
    kinds = dict(zip(types, references, strict=True))
    paths: dict[str, Json] = {}
    for row in rows:
        paths.setdefault(row.path, {})[row.route.method.lower()] = described(row, kinds)
    schemas["Failure"] = {
        "title": "Failure",
        "type": "object",
        "description": "Every error. code: for programs, where the text does not tell what to do.",
        "properties": {"ok": {"const": False}, "error": {"type": "string"}, "code": {"type": "string"}},
        "required": ["ok", "error"],
    }
    if any(row.dialect.name in MESSAGES for row in rows):
        schemas["ArchiverError"] = MESSAGE
    made: Json = {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": version, "description": ABOUT},
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(row.route.group for row in rows)],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": API_KEY},
            },
            "schemas": {
                name: {**tidied(schema), "title": plain_name(name)} for name, schema in sorted(schemas.items())
            },
            "responses": {str(status): failing(text) for status, text in ERRORS.items()},
        },
    }
    plain: Json = told_plainly(made, {name: plain_name(name) for name in schemas})
    return plain


def plain_name(name: str) -> str:
    """Return a name for a schema that programs can give a class: of two dialects' one, with the dialect before it."""
    *path, last = name.split(".")
    return f"{path[path.index('dialects') + 1].capitalize()}{last}" if "dialects" in path else last


def told_plainly(found: Any, names: Mapping[str, str]) -> Any:
    """Write schemas as every tool reads them: names that can be a class's, a type beside each constant, one value as `const`."""
    if isinstance(found, list):
        return [told_plainly(one, names) for one in found]
    if not isinstance(found, dict):
        return found
    made = {key: told_plainly(one, names) for key, one in found.items()}
    if isinstance(ref := made.get("$ref"), str) and ref.startswith(REF):
        made["$ref"] = REF + names[ref.removeprefix(REF)]
    schemas = made.get("schemas")
    if isinstance(schemas, dict):
        made["schemas"] = {names.get(name, name): one for name, one in schemas.items()}
    values = made.get("enum")
    if isinstance(values, list) and len(values) == 1:
        del made["enum"]
        made["const"] = values[0]
    if "type" not in made and ("const" in made or isinstance(values, list)):
        kinds = {JSON_TYPES[type(one)] for one in values or [made["const"]]}
        if len(kinds) == 1:
            made = {"type": kinds.pop(), **made}
    if made.get("type") == "integer" and "const" in made:
        # Some write code of it that does not compile; two bounds say the same.
        made["minimum"] = made["maximum"] = made.pop("const")
    return made


JSON_TYPES: Mapping[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}


def is_json(kind: Any) -> bool:
    return kind is not None and kind not in (Text, Html, Octets, WebSocketUpgrade, EventStream)


def described(row: ServedRoute, kinds: Mapping[Any, Json]) -> Json:
    """Describe one route."""
    route = row.route
    shown: Json = {
        "operationId": operation_id(route.method, row.path),
        "tags": [route.group],
        "summary": summary(route),
        "parameters": parameters(row),
        "responses": responses(row, kinds),
    }
    details = paragraph(route.what)
    if not route.about and details != shown["summary"]:
        shown["description"] = details
    if route.takes is not None:
        struct = isinstance(route.takes, type) and issubclass(route.takes, msgspec.Struct)
        needs = not struct or any(is_required(field) for field in msgspec.structs.fields(route.takes))
        shown["requestBody"] = {
            "required": needs,
            "content": {"application/json": {"schema": kinds[route.takes]}},
        }
    if route.right in ("open", "metrics"):
        shown["security"] = [{}] if route.right == "open" else OF_METRICS
    else:
        shown["x-right"] = route.right
        shown["x-scope"] = route.touches
        if row.dialect.name == "openarchiver":
            shown["security"] = [{"token": []}, {"key": []}]
    if not shown["parameters"]:
        del shown["parameters"]
    return shown


def summary(route: Route) -> str:
    """Return one sentence: the row's own, else the first of its operation's or query's docstring."""
    if route.about:
        return route.about
    text = paragraph(route.what or route.handler)
    return text.split(". ")[0].removesuffix(".") + "."


def paragraph(documented: Any) -> str:
    """Return the first paragraph of a docstring on one line, in a client's words; what follows is about fields."""
    return worded(" ".join((documented.__doc__ or "").split("\n\n")[0].split()))


def worded(text: str) -> str:
    """Say for a client what a docstring says for a programmer."""
    return PYTHON_WORDS.sub(lambda found: f"`{JSON_WORDS[found[0]]}`", text)


def operation_id(method: str, path: str) -> str:
    words = re.findall(r"[A-Za-z0-9]+", path)
    return method.lower() + "".join(word[0].upper() + word[1:] for word in words)


def parameters(row: ServedRoute) -> list[Json]:
    """List the parameters of the path, then those of the query, then the headers."""
    found: list[Json] = []
    for name in re.findall(r"\{(\w+)\}", row.path):
        text, schema = PARAMETERS_OF.get(row.dialect.name, {}).get(name) or PARAMETERS[name]
        found.append({"name": name, "in": "path", "required": True, "description": text, "schema": schema})
    found += [
        {"name": one.name, "in": "query", "description": one.text, "schema": dict(one.schema)} for one in row.route.asks
    ]
    if is_write(row.route):
        text = "Makes the request one with its repeats: for a day each gets the first answer, from any node."
        schema = {"type": "string", "minLength": 1, "maxLength": KEY_CHARS_MAX}
        found.append({"name": HEADER, "in": "header", "description": text, "schema": schema})
    return found


def is_write(route: Route) -> bool:
    return route.what is not None and issubclass(route.what, Operation)


def responses(row: ServedRoute, kinds: Mapping[Any, Json]) -> Json:
    """List the statuses that a route answers with."""
    route, in_text = row.route, row.dialect.content_type == TEXT
    if route.reply is WebSocketUpgrade:
        found: Json = {"101": {"description": "The connection goes on as a WebSocket."}}
    else:
        found = {"200": {"description": "Done.", "content": content(route.reply, kinds)}}
    if route.right == "open":
        found |= {
            str(status): {"description": text, "content": content(Text, kinds)} if in_text else failing(text)
            for status, text in route.answers.items()
        }
        if route.path.startswith(("/ready", "/startupz", "/livez")):
            not_ready = {"application/json": {"schema": kinds[NotReady]}}
            found["503"] = {"description": "Not now; `error` says why.", "content": not_ready}
        return found
    for status in ERRORS:
        if status == 413 and route.body == "none":
            continue
        if status == 429 and not route.limited:
            continue
        text = route.answers.get(status)
        if text is None and status in (409, 422) and not is_write(route):
            continue
        if message := MESSAGES.get(row.dialect.name):
            found[str(status)] = {
                "description": text or TEXT_ERRORS[status].replace("the text", "`message`"),
                "content": message,
            }
            continue
        if in_text:
            found[str(status)] = {"description": text or TEXT_ERRORS[status], "content": content(Text, kinds)}
            continue
        if text:
            found[str(status)] = failing(text)
            continue
        found[str(status)] = {"$ref": f"#/components/responses/{status}"}
    return found


def failing(text: str) -> Json:
    """Describe the reply of an error."""
    return {"description": text, "content": {"application/json": {"schema": {"$ref": f"{REF}Failure"}}}}


def content(reply: Any, kinds: Mapping[Any, Json]) -> Json:
    if reply is Text:
        return {"text/plain": {"schema": {"type": "string"}}}
    if reply is Html:
        return {"text/html": {"schema": {"type": "string"}}}
    if reply is Octets:
        return {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    if reply is EventStream:
        # Without a schema: OpenAPI 3.1 does not say whether one would be of the stream or of an event, and tools differ.
        return {"text/event-stream": {}}
    return {"application/json": {"schema": kinds[reply]}}


def is_required(field: Any) -> bool:
    """Say whether a field of a body has to be there; the types allow its absence, to answer in the documented words."""
    metas = getattr(field.type, "__metadata__", ())
    return any((meta.extra_json_schema or {}).get("x-required") for meta in metas)


def tidied(schema: Json) -> Json:
    """Turn what the types cannot say into JSON Schema: fields that must be there, and absence that is no default."""
    schema = dict(schema)
    if "description" in schema:
        schema["description"] = worded(schema["description"])
    properties = schema.get("properties")
    if not properties:
        return schema
    required = list(schema.get("required", ()))
    schema["properties"] = shown = {}
    for name, found in properties.items():
        one = dict(found)
        if one.pop("x-required", False):
            required.append(name)
        if one.get("default", "") is None:
            del one["default"]
        if "x-default" in one:
            one["default"] = one.pop("x-default")
        shown[name] = one
    if required:
        schema["required"] = required
    return schema


# -- The reference as a page of text -------------------------------------------------------------------------------------

REFERENCE = """\
# HTTP reference

<!-- Made by scripts/generate from the tables of routes in api/. Change it there. -->

{about}

`GET /openapi.json` gives the same as an OpenAPI 3.1 document, `GET /docs` as a page to browse and try. Where an answer
differs from a dialect's document or server, [compatibility.md](compatibility.md) says why.

Every write takes `Idempotency-Key`, a text of up to 255 characters: for a day, a repeat of the request with the same key is
not done again but gets the first answer, from whichever node. Every read takes `?consistency=stale`, and then answers from
the node's own copy.

Statuses of all requests:

| status | meaning |
| --- | --- |
| 200 | Done. |
{errors}
"""


# Large objects that many replies hold: what stands for each, and the heading under which it is described.
EVENTS = """\
A WebSocket sends an event as `{"event": name, "ts": milliseconds, "data": …}`; server-sent events have its name in `event` and its data
with `timestamp` in `data`. A key with `?` is left out when it is false, empty or unknown.
"""
SNAKE = re.compile(r"\b[a-z]+(?:_[a-z]+)+\b")
OBJECTS = {
    "JobShown": ("<job>", "The job object"),
    "JobJson": ("<BullMQ job>", "BullMQ's job object"),
    "JobOpts": ("JobOpts", "BullMQ's options of a job"),
    "BackoffOpts": ("BackoffOpts", "BullMQ's backoff"),
    "DeduplicationOpts": ("DeduplicationOpts", "BullMQ's deduplication"),
    "KeepOpts": ("KeepOpts", "BullMQ's keeping of finished jobs"),
    "RepeatOpts": ("RepeatOpts", "BullMQ's repetition"),
}


def reference(dialects: Iterable[tuple[Dialect, str]], events: Mapping[str, type]) -> str:
    """Write docs/http-reference.md. events: what each says, by name."""
    whole = document(dialects, "")
    schemas: Json = whole["components"]["schemas"]
    errors = "\n".join(f"| {status} | {text} |" for status, text in ERRORS.items())
    parts = [REFERENCE.format(about=ABOUT, errors=errors)]
    for tag in whole["tags"]:
        parts.append(f"\n## {tag['name']}\n")
        for path, methods in whole["paths"].items():
            for method, one in methods.items():
                if tag["name"] in one["tags"]:
                    parts.append(section(method.upper(), path, one, schemas))
    parts.append(events_section(events))
    for schema, (sign, title) in OBJECTS.items():
        if schema not in schemas:
            continue
        parts.append(
            f"\n## {title}\n\nWhat `{sign}` stands for above.\n\n| key | type | what it is |\n| --- | --- | --- |\n"
        )
        job = schemas[schema]
        for name, field in job["properties"].items():
            absent = "" if name in job.get("required", ()) else ", may be absent"
            text = (field.get("description", "") + bounds(field)).strip().replace("|", chr(92) + "|")
            parts.append(f"| `{name}` | {kind_of(field)}{absent} | {text} |\n")
    return "".join(parts)


def camel(word: re.Match[str]) -> str:
    return word[0][0] + word[0].title().replace("_", "")[1:]


def events_section(events: Mapping[str, type]) -> str:
    """Write what each event says."""
    references, schemas = msgspec.json.schema_components(
        list(dict.fromkeys(events.values())), ref_template=REF + "{name}"
    )
    kinds = dict(zip(dict.fromkeys(events.values()), references, strict=True))
    rows = (
        f"| `{name}` | `{example(kinds[kind], schemas)}` | {SNAKE.sub(camel, ' '.join((kind.__doc__ or '').split()))} |\n"
        for name, kind in sorted(events.items())
    )
    return f"\n## Events by name\n\n{EVENTS}\n| event | `data` | when |\n| --- | --- | --- |\n{''.join(rows)}"


def section(method: str, path: str, one: Json, schemas: Json) -> str:
    """Write what there is to say about one route."""
    right = one.get("x-right")
    needs = f"Needs the right `{right}`{SCOPES.get(one['x-scope'], '')}." if right else "Needs no token."
    if "101" in one["responses"]:
        needs = OF_SOCKETS
    elif one.get("security") == OF_METRICS:
        needs = "Needs no token, or the right `metrics` on all queues when `METRICS_AUTH` is true."
    if right == "job":
        needs = "Needs the token that the job was handed out with."
    parts = [f"\n### {method} {path}\n\n{one.get('description', one['summary'])} {needs}\n"]
    rows = [
        [f"`{item['name']}`", item["in"], kind_of(item["schema"]), item["description"] + bounds(item["schema"])]
        for item in one.get("parameters", ())
        if item["name"] not in ("queue", "id", "consistency", HEADER)
    ]
    if "requestBody" in one:
        schema = resolved(one["requestBody"]["content"]["application/json"]["schema"], schemas)
        if schema.get("type") == "array":
            parts.append("\nThe body is an array of:\n")
            schema = resolved(schema["items"], schemas)
        elif not schema:
            parts.append("\nThe body is any JSON.\n")
        required = schema.get("required", ())
        for name, field in schema.get("properties", {}).items():
            text = ("required. " if name in required else "") + field.get("description", "") + bounds(field)
            rows.append([f"`{name}`", "body", kind_of(field), text.strip()])
    if rows:
        parts.append("\n| name | in | type | what it is |\n| --- | --- | --- | --- |\n")
        parts += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows]
    if "101" in one["responses"]:
        return "".join([*parts, "\nAnswers `101 Switching Protocols`.\n"])
    kind, shown = next(iter(one["responses"]["200"]["content"].items()))
    if kind == "application/json":
        parts.append(f"\nAnswers `{example(shown['schema'], schemas)}`.\n")
    else:
        parts.append(f"\nAnswers `{kind}`.\n")
    return "".join(parts)


def resolved(schema: Json, schemas: Json) -> Json:
    found: Json = schemas[schema["$ref"].removeprefix(REF)] if "$ref" in schema else schema
    return found


def kind_of(schema: Json) -> str:
    """Name the type of a field in a word or two; null goes without saying."""
    if "$ref" in schema:
        return str(schema["$ref"]).removeprefix(REF)
    if "anyOf" in schema:
        names = [kind_of(one) for one in schema["anyOf"] if one != {"type": "null"}]
        if set(names) <= {"integer", "number"}:
            return "number"
        return " or ".join(dict.fromkeys("number" if name == "integer" else name for name in names))
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{msgspec.json.encode(one).decode()}`" for one in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"{kind_of(schema.get('items', {}))}[]"
    return str(schema.get("type", "any"))


def bounds(schema: Json) -> str:
    """Write the bounds and the default of a field."""
    low, high = schema.get("minimum"), schema.get("maximum")
    parts = []
    if low is not None and high is not None:
        parts.append(f"{low:,} to {high:,}")
    elif low is not None or high is not None:
        parts.append(f"at least {low:,}" if low is not None else f"at most {high:,}")
    if "maxLength" in schema:
        parts.append(f"at most {schema['maxLength']:,} characters")
    if "maxItems" in schema:
        parts.append(f"at most {schema['maxItems']:,}")
    if schema.get("default") not in (None, ""):
        parts.append(f"default `{msgspec.json.encode(schema['default']).decode()}`")
    return f" ({'; '.join(parts)})" if parts else ""


def example(schema: Json, schemas: Json, depth: int = 0) -> str:
    """Write the shape of a reply in one line."""
    name = str(schema.get("$ref", "")).removeprefix(REF)
    schema = resolved(schema, schemas)
    if name in OBJECTS or (depth > 3 and "properties" in schema):
        return OBJECTS[name][0] if name in OBJECTS else f"<{name}>"
    if "properties" in schema:
        required = schema.get("required", ())
        fields = (
            f'"{key}"{"" if key in required else "?"}: {example(one, schemas, depth + 1)}'
            for key, one in schema["properties"].items()
        )
        return "{" + ", ".join(fields) + "}"
    if "anyOf" in schema:
        texts = [example(one, schemas, depth) for one in schema["anyOf"]]
        return " or ".join(dict.fromkeys("number" if text == "integer" else text for text in texts))
    if schema.get("type") == "array":
        return f"[{example(schema.get('items', {}), schemas, depth + 1)}, …]"
    if isinstance(schema.get("additionalProperties"), dict):
        return f'{{"…": {example(schema["additionalProperties"], schemas, depth + 1)}}}'
    if "const" in schema or "enum" in schema:
        return " or ".join(msgspec.json.encode(one).decode() for one in schema.get("enum", [schema.get("const")]))
    return str(schema.get("type", "any"))
