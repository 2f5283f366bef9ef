"""The type of a key's value in words, for messages; and a value as YAML writes it."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import Any

import yaml

ONE = {float: "a finite number", int: "an integer", bool: "true or false", str: "text (in YAML quotes if digits)"}
MANY = {float: "numbers", int: "integers", bool: "true and false", str: "words"}
EXAMPLES = {float: "[0.5, 1.0]", int: "[1, 2]", bool: "[true, false]", str: "[first, second]"}


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union; any other type alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def accepts_null(hint: Any) -> bool:
    return hint is Any or any(part in (Any, type(None)) for part in alternatives(hint))


def wanted(hint: Any) -> str:
    """What a key of this type takes, in words."""
    parts = alternatives(hint)
    if len(parts) > 1:
        named = [wanted(part) for part in parts if part is not type(None)]
        return " or ".join(named) + (", or null" if type(None) in parts else "")
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(word) for word in inner)
    if origin is tuple and Ellipsis not in inner:
        return f"a list of {len(inner)} {MANY.get(inner[0], 'values')}"
    if origin in (list, tuple, Sequence):
        return f"a list of {MANY.get(inner[0], 'values')}, e.g. {EXAMPLES.get(inner[0], '[...]')}"
    if dict in (origin, hint):
        return "a mapping, e.g. {name: value}"
    return ONE.get(hint, f"of type {getattr(hint, '__name__', hint)}")


def shown(value: Any) -> str:
    """A value as YAML writes it, on one line."""
    return yaml.safe_dump(value, default_flow_style=True).split("\n")[0][:120] if value is not None else "null"
