"""Writes docs/configuration.md: every key of a config, and the options of every registered part, from the code itself.

    python -m tools.config_reference            writes it
    python -m tools.config_reference --check    ends with code 2 if it is not current

Types, defaults and meanings are those that the parser and `--help` use; ranges are asked of the checks that refuse
values outside them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from provscale.config import Config, validate
from provscale.errors import UserError, reported
from provscale.files import write_atomically
from provscale.options import REQUIRED, Option, Options, options_of
from provscale.registry import Registry
from provscale.value_types import alternatives, shown, wanted

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
COMMAND = "python -m tools.config_reference"
HEAD = f"""# Configuration

<!-- Written by `{COMMAND}`; change the docstrings in provscale/, not this page. -->

A run is described by one YAML file (`--cfg`) and by options of the command line after it, which win:
`--guidance.alpha 0.05`, `--data.options.edits 60`. `provscale-train --help` prints the same texts, `--print_config` a
complete file, and every run keeps its own in `runs/<run.name>/config.yaml`. An unknown key, a value of another type and
one outside its range end with one line and exit code 2.

Keys come first, then the options of [data sets](#dataoptions), [models](#modeloptions) and
[syntheses](#synthesisoptions).
"""
HEADER = "| key | value | default | meaning |\n|---|---|---|---|"
OUTSIDE = -1e9
"""Below every range there is, so that a check says what its range is."""


def registered() -> dict[str, Registry[Any]]:
    """Keys that choose from a registry."""
    from provscale.command_line import registries
    from provscale.evaluation import EVALUATORS
    from provscale.guidance.executors import EXECUTORS
    from provscale.guidance.measures import MEASURES
    from provscale.guidance.scores import SCORES
    from provscale.tracking import TRACKERS

    others: list[Registry[Any]] = [SCORES, MEASURES, EXECUTORS, EVALUATORS, TRACKERS]
    return {registry.key: registry for registry in (*registries().values(), *others)}


def own_names(registry: Registry[Any]) -> list[str]:
    """What provscale itself registers; a user's modules may have added more."""
    return [name for name in registry if registry[name].__module__.startswith("provscale.")]


def limits(field: Option, check: Callable[[Any], object]) -> str:
    """The range that `check` names when it refuses a number; "" if it takes every one."""
    kind = next((part for part in alternatives(field.type) if part in (int, float)), None)
    if kind is None:
        return ""
    try:
        check(kind(OUTSIDE))
    except UserError as error:
        return str(error).split("must be ")[-1].split(", or null")[0].removesuffix(" and finite")
    return ""


def line(key: str, field: Option, allowed: str) -> str:
    """A row of a table."""
    default = "needed" if field.default is REQUIRED else f"`{short(shown(plain(field.default)))}`"
    kinds = [part for part in alternatives(field.type) if part is not type(None)]
    value = " or ".join("text" if kind is str else wanted(kind) for kind in kinds).replace("finite ", "")
    value = (
        value.split(", e.g.")[0]
        + (f": {allowed}" if allowed else "")
        + (", or null" * (type(None) in alternatives(field.type)))
    )
    cells = (f"`{key}`", value, default, field.description)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def short(text: str) -> str:
    return text if len(text) <= 60 else text[:60].rsplit(",", 1)[0] + ", ...]"


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def keys() -> Iterable[str]:
    """A table for each section of the config."""
    registries, config = registered(), Config()

    def validated(section: str, name: str) -> Callable[[Any], object]:
        part = getattr(config, section)
        return lambda value: validate(replace(config, **{section: replace(part, **{name: value})}))

    sections = options_of(Config).fields
    top = [line(name, field, "") for name, field in sections.items() if not is_dataclass(field.type)]
    yield "## Top level\n\n" + "\n".join([HEADER, *top])
    for section, held in sections.items():
        if not (isinstance(held.type, type) and is_dataclass(held.type)):
            continue
        rows = []
        for name, field in options_of(held.type).fields.items():
            key = f"{section}.{name}"
            names = ", ".join(own_names(registries[key])) if key in registries else ""
            rows.append(line(key, field, names or limits(field, validated(section, name))))
        about = (held.type.__doc__ or "").splitlines()[0].replace("<", "\\<")
        yield f"## {section}\n\n{about}\n\n" + "\n".join([HEADER, *rows])


def parts() -> Iterable[str]:
    """A chapter for each registry whose parts have options, and a table for each part."""
    from provscale.command_line import registries

    for section, registry in registries().items():
        yield f"## {section}.options"
        bare = []
        for name in own_names(registry):
            options = options_of(registry[name])
            if options.fields:
                yield f"### {section}.name: {name}\n\n" + "\n".join(
                    [HEADER, *option_lines(section, registry[name], options)]
                )
            else:
                bare.append(name)
        if bare:
            yield f"Without options: {', '.join(bare)}."
        if section == "model":
            yield "Every other name is one of timm's, with timm's arguments as options."


def option_lines(section: str, part: Any, options: Options) -> list[str]:
    """A row for each option; its range is what the dataclass says that refuses it, if it can be made of one option."""
    made: Callable[..., object] | None = options.group or (
        part if isinstance(part, type) and is_dataclass(part) else None
    )
    if any(field.default is REQUIRED for field in options.fields.values()):
        made = None

    def checked(name: str) -> Callable[[Any], object]:
        return lambda value: made(**{name: value}) if made else None

    return [
        line(f"{section}.options.{name}", field, limits(field, checked(name)))
        for name, field in options.fields.items()
    ]  # fmt: skip


def page() -> str:
    return "\n\n".join([HEAD.rstrip(), *keys(), *parts()]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a page that is not current under --check."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 2 if the page is not current")
    options = parser.parse_args(arguments)
    return reported(check if options.check else write)


def write() -> None:
    write_atomically(PAGE, page())
    print(PAGE)


def check() -> None:
    if not PAGE.exists() or PAGE.read_text() != page():
        raise UserError(f"{PAGE}: is not current; run {COMMAND}")


if __name__ == "__main__":
    sys.exit(main())
