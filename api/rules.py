"""A field's rule, declared once beside the field: the check in the documented order, the documented text, the JSON Schema.

`says(…)` stands in the field's annotation. What a dialect lets pass, and in which words it refuses the rest, are its makers of rules
(values.py of each): `number(…)`, `key(…)`, `note(…)`. Whoever reads a body (`read` of a dialect) gets what the rules made of it, so
that a field with a rule cannot be read past it; a test fails on a field that could hold a text or a list and has no rule with a bound.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, Meta

from .errors import Invalid

# Makes of a value, which may be of any type, what is kept of it: field's name, value. Raises Invalid.
Reads = Callable[[str, Any], Any]


class Rule(NamedTuple):
    """How a field is read.

    reads: None: as it is, which only suits what is looked at later.  bound: characters, bytes or items at most, whether more is refused
    or cut off; None for what cannot be long.  missing: what is said of one that is not there, where it must be.  instead_of: the
    field that counts where both are there.  only_with: the field without which it is not looked at.
    """

    reads: Reads | None
    bound: int | None
    missing: str
    instead_of: str
    only_with: str


def says(
    text: str = "",
    *,
    reads: Reads | None = None,
    bound: int | None = None,
    required: bool | str = False,
    default: Any = None,
    low: int | None = None,
    high: int | None = None,
    max_chars: int | None = None,
    max_items: int | None = None,
    instead_of: str = "",
    only_with: str = "",
    elsewhere: bool = False,
) -> Meta:
    """Declare a field's rule. text: for the document.  required: whether it must be there, or what is said when it is not.

    elsewhere: it is whoever reads the body that looks for it.  low, high, max_chars, max_items: for the JSON Schema; `bound` need only
    be said where it is none of these.
    """
    words = {
        "x-default": default,
        "minimum": low,
        "maximum": high,
        "maxLength": max_chars,
        "maxItems": max_items,
        "x-required": bool(required) or None,
    }
    known = {word: value for word, value in words.items() if value is not None}
    missing = required if isinstance(required, str) else "{} is required"
    if elsewhere or not required:
        missing = ""
    rule = Rule(
        reads,
        next((one for one in (bound, max_items, max_chars) if one is not None), None),
        missing,
        instead_of,
        only_with,
    )
    return Meta(description=text or None, extra_json_schema=known or None, extra={"rule": rule})


class RuledField(NamedTuple):
    """A field with its rule: its name here, its name for clients."""

    name: str
    spelled: str
    rule: Rule


def hints_of(kind: Any) -> dict[str, Any]:
    """Return the annotations of a struct, in which a name is what it is in the struct's module.

    `get_type_hints` lets a function that is written there look among the struct's own names first, where a field hides what it calls.
    """
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        found |= inspect.get_annotations(base, globals=vars(sys.modules[base.__module__]), locals={}, eval_str=True)
    return found


@functools.cache
def fields_with_rules(kind: Any) -> tuple[RuledField, ...]:
    """Return the fields that have a rule, in the order in which they are checked: `CHECKED` of the struct first, then as declared."""
    hints = hints_of(kind)
    found = {}
    for field in msgspec.structs.fields(kind):
        rules = [meta.extra["rule"] for meta in getattr(hints[field.name], "__metadata__", ()) if meta.extra]
        if rules:
            # The outermost comes last, and may leave to the inner one what it does not say.
            rule = rules[0]
            for outer in rules[1:]:
                rule = Rule(*(new or old for new, old in zip(outer, rule, strict=True)))
            found[field.name] = RuledField(field.name, field.encode_name, rule)
    first = [found.pop(name) for name in getattr(kind, "CHECKED", ())]
    return (*first, *found.values())


@functools.cache
def steps_of(kind: Any) -> tuple[tuple[str, str, Reads | None, str, str, str], ...]:
    """Return the fields with their rules as plain tuples: it is looked at for each job of a request."""
    return tuple((name, spelled, *rule[:1], *rule[2:]) for name, spelled, rule in fields_with_rules(kind))


def apply(body: msgspec.Struct, prefix: str = "") -> Any:
    """Have every field of a body hold what its rule makes of it, and return the body. Raises Invalid."""
    for name, spelled, reads, missing, instead_of, only_with in steps_of(type(body)):
        value = getattr(body, name)
        if value is None or value is UNSET:
            if missing:
                raise Invalid(missing.format(prefix + spelled))
        elif instead_of and getattr(body, instead_of) is not None:
            setattr(body, name, None)
        elif reads is not None and not (only_with and getattr(body, only_with) is None):
            made = reads(prefix + spelled, value)
            if made is not value:
                setattr(body, name, made)
    return body


def apply_to_members(kind: type[msgspec.Struct], found: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return what the rules of a struct make of an object's members that are there, null among them, by the fields' names here.

    Raises Invalid.
    """
    made = {}
    for name, spelled, rule in fields_with_rules(kind):
        if spelled in found:
            value = found[spelled]
            made[name] = value if rule.reads is None else rule.reads(prefix + spelled, value)
        elif rule.missing:
            raise Invalid(rule.missing.format(prefix + spelled))
    return made
