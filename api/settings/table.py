"""The mechanism of a table of settings: where a value comes from, how it is read, and what is said when it cannot be used.

Each field of a table is one setting; its type, default, unit and help give the flag, the environment variable, the key of a TOML
file and the documentation.  Which settings there are is `rows.py`'s.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

S = TypeVar("S", bound="Settings")

INTEGER = re.compile(r"\s*-?[0-9]{1,30}\s*")
NOWHERE: Mapping[str, str] = types.MappingProxyType({})


class SettingError(Exception):
    """A setting that cannot be used; the message names the setting and where its value came from."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What the type of a setting cannot say.

    low, high: bounds, both included.  secret: never a flag (the process list shows flags) and never printed.
    default_text: said in place of the default where the default is worked out.  check: raises ValueError with what is wrong
    with a value that its type allows.  parse: turns what was given into the value where the type does not say how, and raises
    ValueError; form: what a user has to write then.
    """

    group: str
    help: str
    unit: str = ""
    low: int | None = None
    high: int | None = None
    secret: bool = False
    default_text: str = ""
    # The word that is taken for None: no bound, or not at all.
    none_word: str = ""
    check: Callable[[Any], None] | None = None
    parse: Callable[[Any], Any] | None = None
    form: str = ""


class Settings:
    """What a table of settings can say of itself: a frozen dataclass whose fields are `Annotated[type, About(…)]`."""

    def origin(self, key: str) -> str:
        """Say where the value of a setting came from."""
        return self.origins.get(key, "by default")

    @property
    def origins(self) -> Mapping[str, str]:
        """Where values came from, by key; those by default are not in it."""
        found: Mapping[str, str] = getattr(self, "_origins", NOWHERE)
        return found

    def name_with_origin(self, key: str) -> str:
        """Name a setting with its value, unless that is a secret, and with where it came from."""
        setting = next(one for one in rows_of(type(self)) if one.key == key)
        value = "" if setting.about.secret else f" {setting.shown(getattr(self, key))!r}"
        return f"{setting.env}{value} ({self.origin(key)})"

    def blamed(self, text: str) -> str:
        """Add to what is wrong where the settings that it names came from."""
        named = [one for one in rows_of(type(self)) if re.search(rf"\b{one.env}\b", text)]
        return f"{text} ({'; '.join(f'{one.env} {self.origin(one.key)}' for one in named)})" if named else text

    def __repr__(self) -> str:
        shown = (f"{s.key}={s.shown(getattr(self, s.key))}" for s in rows_of(type(self)))
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    key: the field and the file's key.  env: the environment's variable.  flag: the command line's, None for secrets.
    """

    key: str
    type: Any
    default: Any
    about: About

    @property
    def env(self) -> str:
        return self.key.upper()

    @property
    def flag(self) -> str | None:
        return None if self.about.secret else "--" + self.key.replace("_", "-")

    @property
    def type_name(self) -> str:
        """What a user has to write, in a word or two."""
        kind = required(self.type)
        if kind is bool:
            return "false, true"
        if typing.get_origin(kind) is Literal:
            return ", ".join(typing.get_args(kind))
        names: dict[Any, str] = {int: "whole number", str: "text", Path: "path"}
        if self.about.none_word:
            return f"whole number or {self.about.none_word}"
        return self.about.form or names.get(kind, "list")

    @property
    def default_text(self) -> str:
        """The default as a user would write it."""
        return self.about.default_text or written(self.default)

    def shown(self, value: Any) -> str:
        """The value as it may be printed: a secret only says whether it is set."""
        if self.about.secret:
            return "(set)" if value else "(not set)"
        return ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, Mapping) else written(value)

    def parse(self, raw: Any) -> Any:
        """Turn what a flag, a variable or a file says into the value. Raises ValueError saying what was expected."""
        value = self.parse_type(raw)
        if self.about.check is not None:
            self.about.check(value)
        return value

    def parse_type(self, raw: Any) -> Any:
        """Turn it into a value of the setting's type."""
        if self.about.parse is not None:
            return self.about.parse(raw)
        kind = required(self.type)
        word = self.about.none_word.lower()
        # TOML has a number that is infinite.
        if word and (raw == math.inf or (isinstance(raw, str) and raw.strip().lower() == word)):
            return None
        if kind is int:
            return self.parse_int(raw)
        if kind is bool:
            return parse_word(raw, ("false", "true")) == "true"
        if kind is str:
            return parse_text(raw) if self.about.secret else parse_line(raw)
        if kind is Path:
            return parse_path(raw)
        if typing.get_origin(kind) is Literal:
            return parse_word(raw, typing.get_args(kind))
        return parse_list(raw)

    def parse_int(self, raw: Any) -> int:
        # A boolean is an int to Python, and `http_port = true` in a file is a mistake.
        if isinstance(raw, str) and INTEGER.fullmatch(raw):
            raw = int(raw)
        if not isinstance(raw, int) or isinstance(raw, bool):
            raise ValueError("must be a whole number")
        low, high = self.about.low, self.about.high
        if low is not None and raw < low:
            raise ValueError(f"must be at least {low}")
        if high is not None and raw > high:
            raise ValueError(f"must be at most {high}")
        return raw


def required(kind: Any) -> Any:
    """Take `| None` off a type."""
    if isinstance(kind, types.UnionType):
        return next(part for part in typing.get_args(kind) if part is not type(None))
    return kind


def written(value: Any) -> str:
    """A value as a user would write it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise ValueError("must be text")
    return raw


def parse_line(raw: Any) -> str:
    """Text that goes into a header or a log line."""
    if any(letter < " " or letter == "\x7f" for letter in parse_text(raw)):
        raise ValueError("must be one line without control characters")
    return str(raw)


def parse_path(raw: Any) -> Path:
    # An empty path would be the present folder, and comes of a variable that a script forgot to set.
    if not (text := parse_line(raw)).strip():
        raise ValueError("must not be empty")
    return Path(text).expanduser()


def parse_word(raw: Any, words: tuple[str, ...]) -> str:
    """One of some words, in capital letters or small ones; TOML has `true` and `false` of its own."""
    word = str(raw).strip().lower() if isinstance(raw, (str, bool)) else ""
    if word not in words:
        raise ValueError(f"must be one of {', '.join(words)}")
    return word


def parse_list(raw: Any) -> tuple[str, ...]:
    if isinstance(raw, str):
        raw = raw.split(",")
    if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
        raise ValueError("must be a list of texts")
    return tuple(parse_line(item.strip()) for item in raw if item.strip())


def rows_of(table: type[Any]) -> tuple[Setting, ...]:
    """The rows of a table, in the order of its fields."""
    hints = typing.get_type_hints(table, include_extras=True)
    rows = []
    for item in fields(table):
        kind, about = typing.get_args(hints[item.name])
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        rows.append(Setting(item.name, kind, default, about))
    return tuple(rows)


def collect(
    table: type[Settings], flags: Mapping[str, str | None], environment: Mapping[str, str], file: Path | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values that are given somewhere, and for each where: a flag wins over the environment, that over the file.

    flags: by key; None is a flag that was not given.  An empty variable counts as one that is not set.
    Raises SettingError.
    """
    in_file = read_file(table, file) if file else {}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for setting in rows_of(table):
        raw: Any = flags.get(setting.key)
        origin = f"from the flag {setting.flag}"
        if raw is None:
            raw, origin = environment.get(setting.env) or None, "from the environment"
        if raw is None:
            raw, origin = in_file.get(setting.key), f"from {file}"
        if raw is None:
            continue
        try:
            values[setting.key] = setting.parse(raw)
        except ValueError as error:
            given = "" if setting.about.secret else f" {raw!r}"
            raise SettingError(f"{setting.env}{given} ({origin}) {error}") from None
        origins[setting.key] = origin
    return values, origins


def with_origins(config: S, origins: Mapping[str, str]) -> S:
    """Note where the values of settings came from; it is no setting, and makes no difference to what is equal."""
    object.__setattr__(config, "_origins", origins)
    return config


def read_file(table: type[Settings], path: Path) -> dict[str, Any]:
    """Read a TOML file of settings by their lower-case names; a name that is no setting is an error."""
    try:
        content = tomllib.loads(path.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(
            f"the settings file {path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"the settings file {path} is not valid TOML: {error}") from None
    known = {setting.key for setting in rows_of(table)}
    if unknown := sorted(set(content) - known):
        near = difflib.get_close_matches(unknown[0].lower().replace("-", "_"), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see docs/configuration.md"
        raise SettingError(f"the settings file {path} has {unknown[0]!r}, which is no setting ({hint})")
    return content
