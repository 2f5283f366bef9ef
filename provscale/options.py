"""Options of registered parts: `data.options`, `model.options` and `synthesis.options`.

A part declares its options by the parameters that it takes beyond those it is given (`GIVEN`): typed, with defaults,
and described in its docstring. A part with many of them takes one parameter `options` whose type is a dataclass; its
fields are the options then.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, TypeVar

import docstring_parser
from jsonargparse import ArgumentParser

from provscale import strict_yaml  # noqa: F401  (it registers the parser mode)
from provscale.errors import UserError
from provscale.registry import Registry, nearest
from provscale.value_types import accepts_null, shown, wanted

T = TypeVar("T")
GIVEN = frozenset({"config", "seed", "num_classes"})
REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Option:
    """Type (`Any` if a part gives none), default (`REQUIRED` if there is none) and description."""

    type: Any
    default: Any
    description: str


@dataclass(frozen=True)
class Options:
    """The options of one part.

    Attributes:
        fields: options by name.
        group: the dataclass that holds them, if the part takes one.
        open: whether the part takes further options (`**options`), which it checks itself.
    """

    fields: dict[str, Option]
    group: type | None
    open: bool


def options_of(part: Callable[..., Any]) -> Options:
    """The options that a part declares."""
    group = type_hints(part).get("options")
    if not (isinstance(group, type) and is_dataclass(group)):
        group = None
    source: Callable[..., Any] = group or part
    hints, texts = type_hints(source), descriptions(source)
    factories = {
        entry.name: entry.default_factory()
        for entry in (dataclasses.fields(source) if is_dataclass(source) else ())
        if entry.default_factory is not dataclasses.MISSING
    }
    parameters = inspect.signature(source).parameters.values()
    given = frozenset() if is_dataclass(source) else GIVEN
    fields = {
        entry.name: Option(
            hints.get(entry.name, Any), factories.get(entry.name, entry.default), texts.get(entry.name, "")
        )
        for entry in parameters
        if entry.name not in given and entry.kind not in (entry.VAR_KEYWORD, entry.VAR_POSITIONAL)
    }
    return Options(fields, group, any(entry.kind == entry.VAR_KEYWORD for entry in parameters))


def type_hints(source: Callable[..., Any]) -> dict[str, Any]:
    """Types of the parameters that a function or class is called with."""
    plain_class = isinstance(source, type) and not is_dataclass(source)
    return typing.get_type_hints(source.__init__ if plain_class else source)


def descriptions(source: Callable[..., Any]) -> dict[str, str]:
    """Description of each parameter in the docstrings of a function, or of a class and those it inherits from."""
    texts: dict[str, str] = {}
    owners = reversed(source.__mro__) if isinstance(source, type) else (source,)
    for documented in itertools.chain(*((owner, vars(owner).get("__init__")) for owner in owners)):
        for entry in docstring_parser.parse(inspect.cleandoc(documented.__doc__ or "")).params:
            text = " ".join((entry.description or "").split())
            texts.update(dict.fromkeys(entry.arg_name.split(", "), text))
    return texts


def add_options(parser: Any, options: Options, key: str) -> None:
    """Adds one argument per option, e.g. `--synthesis.options.beta`, to a jsonargparse parser or group."""
    for name, option in options.fields.items():
        default = {"required": True} if option.default is REQUIRED else {"default": option.default}
        parser.add_argument(f"--{key}.{name}", type=option.type, help=option.description, **default)


def read_options(registry: Registry[Any], name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The complete options of the part `name`, typed: `given` ones, and defaults for the others.

    Raises:
        UserError: unknown part or option, a value of another type or (of a dataclass) out of range, or none where one
            is needed.
    """
    options = options_of(registry[name])
    key = registry.key.removesuffix(".name") + ".options"
    further = {}
    for option, value in given.items():
        if option in options.fields:
            field = options.fields[option]
            if value is None and not accepts_null(field.type):
                raise UserError(f"{key}.{option}: is null, must be {wanted(field.type)}")
        elif options.open:
            further[option] = value
        elif options.fields:
            allowed = list(options.fields)
            hint = nearest(str(option), allowed)
            raise UserError(f"{key}.{option}: unknown option of {name}{hint} (one of: {', '.join(allowed)})")
        else:
            raise UserError(f"{key}.{option}: {name} has no options; remove it, or start with --{key} '{{}}'")
    for option, field in options.fields.items():
        if field.default is REQUIRED and option not in given:
            raise UserError(f"{key}.{option}: is not set, but {name} needs it; it must be {wanted(field.type)}")
    values = {option: typed(field, given[option], f"{key}.{option}") if option in given else field.default
              for option, field in options.fields.items()}  # fmt: skip
    if options.group is not None:
        options.group(**values)  # a value out of range is reported here
    return {**values, **further}


def typed(field: Option, value: Any, key: str) -> Any:
    """The value as its type has it, e.g. a tuple for a list. Raises UserError when it is of another type."""
    if value is None or field.type is Any:
        return value
    parser = ArgumentParser(exit_on_error=False, parser_mode="provscale")
    parser.add_argument("--value", type=field.type)
    try:
        return parser.parse_object({"value": value}).value
    except Exception:  # jsonargparse raises ArgumentError, TypeError, ValueError and NSKeyError alike
        hint = nearest(str(value), [str(word) for word in typing.get_args(field.type)])
        raise UserError(f"{key}: is '{shown(value)}', must be {wanted(field.type)}{hint}") from None


def build_part(
    registry: Registry[Callable[..., T]], name: str, given: Mapping[str, Any], *arguments: Any, **keywords: Any
) -> T:
    """Calls the part `name` with `arguments`, `keywords` and its options. Raises UserError as `read_options`."""
    part, values = registry[name], read_options(registry, name, given)
    group = options_of(part).group
    return part(*arguments, **keywords, **({"options": group(**values)} if group else values))


def complete_options(registry: Registry[Any], name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """As `read_options`, with values as YAML has them: lists instead of tuples."""
    values = read_options(registry, name, given)
    return {option: list(value) if isinstance(value, tuple) else value for option, value in values.items()}
