"""The command line: config dataclasses <- YAML (`--cfg`) <- options (`--guidance.alpha 0.05`).

A mistake raises UserError with one line, before anything runs.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import typing
import warnings
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from provscale.config import Config, validate
from provscale.errors import UserError
from provscale.options import Options, add_options, complete_options, options_of
from provscale.registry import Registry, nearest
from provscale.shipped import config_names, shipped
from provscale.strict_yaml import load_yaml
from provscale.user_modules import import_modules
from provscale.value_types import accepts_null, shown, wanted

HELP_FLAGS = {"--help", "-h"}


def key_types(cls: type = Config, prefix: str = "") -> dict[str, Any]:
    """Every key a config accepts, dotted, e.g. `guidance.alpha`, with its type."""
    keys: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(cls).items():
        if is_dataclass(hint):
            keys.update(key_types(hint, f"{prefix}{name}."))  # type: ignore[arg-type]
        else:
            keys[prefix + name] = hint
    return keys


def build_parser(parts: dict[str, tuple[str, Options]] | None = None) -> ArgumentParser:
    """The command line: `--cfg FILE` and one option for every key.

    Args:
        parts: for `--help`, sections with the name of the chosen part and the options to list instead of the one
            mapping `options`.
    """
    parser = ArgumentParser(
        prog="provscale-train",
        exit_on_error=False,
        parser_mode="provscale",
        allow_abbrev=False,
        description="Trains with provenance guidance. Start it alone or with `accelerate launch`.",
        epilog="The options of a data set, model or synthesis are listed when it is chosen: --synthesis.name cutmix "
        "--help.",
    )
    parser.add_argument("--cfg", action="config", help="YAML file, or the name of one in configs/ that comes with "
                        "provscale, e.g. demo; options after it override its keys.")  # fmt: skip
    for section, key in options_of(Config).fields.items():
        if not is_dataclass(key.type):
            parser.add_argument(f"--{section}", type=key.type, default=key.default, help=key.description)
        elif parts is None or section not in parts:
            parser.add_class_arguments(key.type, section)
        else:
            name, options = parts[section]
            parser.add_class_arguments(key.type, section, skip={"options"})
            add_options(parser.add_argument_group(f"Options of {section} {name}"), options, f"{section}.options")
    return parser


def parse(arguments: list[str]) -> Config:
    """Reads the command line (without the program's name) and imports the modules of `imports`.

    Raises:
        UserError: unreadable file, unknown key, wrong type, or a combination that cannot work.
        SystemExit: with code 0, after `--help`.
    """
    arguments = with_config_paths(arguments)
    asked = [word for word in arguments if word in HELP_FLAGS]
    arguments = [word for word in arguments if word not in HELP_FLAGS]
    check_files(arguments)
    check_options(arguments)
    if asked:
        build_parser(chosen_parts(read(arguments, defaults=False))).print_help()
        raise SystemExit(0)
    config = to_config(read(arguments))
    validate(config)
    import_modules(config.imports)
    # Imported once all else is known to be right: PyTorch takes seconds.
    for section, registry in registries().items():
        chosen = getattr(config, section)
        if section != "model" or chosen.name in registry:  # timm checks the options of its models
            chosen.options = complete_options(registry, chosen.name, chosen.options)
    return config


def read(arguments: list[str], defaults: bool = True) -> Namespace:
    """Files and options in one namespace; without `defaults`, only the keys that are given. Raises UserError."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            return build_parser().parse_args(arguments, defaults=defaults)
    except SystemExit as error:
        if error.code in (0, None):
            raise
        raise UserError("command line: could not be read; see --help") from error
    except UserError:
        raise
    except Exception as error:  # jsonargparse raises ArgumentError, TypeError, ValueError and NSKeyError alike
        raise UserError(explain(str(error))) from None


def to_config(namespace: Namespace) -> Config:
    hints = typing.get_type_hints(Config)
    given = {entry.name: namespace[entry.name] for entry in fields(Config)}
    return Config(**{name: hints[name](**vars(value)) if is_dataclass(hints[name]) else value
                     for name, value in given.items()})  # fmt: skip


def registries() -> dict[str, Registry[Any]]:
    """Where the parts with options are, by section of the config."""
    from provscale.data import DATA_SETS
    from provscale.models import MODELS
    from provscale.synthesis import SYNTHESES

    return {"data": DATA_SETS, "model": MODELS, "synthesis": SYNTHESES}


def chosen_parts(given: Namespace) -> dict[str, tuple[str, Options]]:
    """Name and options of the parts that a command line chooses, by section of the config."""
    names = {section: given.get(f"{section}.name") for section in ("data", "model", "synthesis")}
    if not any(names.values()):
        return {}  # nothing to import
    import_modules(given.get("imports") or [])
    return {
        section: (name, options_of(registry[name]))
        for section, registry in registries().items()
        if (name := names[section]) and (section != "model" or name in registry)
    }


def with_config_paths(arguments: list[str]) -> list[str]:
    """`--cfg demo` becomes the path of the demo.yaml that comes with provscale. Raises UserError: no such name."""
    words = list(arguments)
    for position, word in enumerate(words):
        if word.startswith("--cfg="):
            words[position] = f"--cfg={config_path(word.removeprefix('--cfg='))}"
        elif position and words[position - 1] == "--cfg":
            words[position] = config_path(word)
    return words


def config_path(given: str) -> str:
    if not given or given.startswith("-") or os.sep in given or Path(given).suffix or Path(given).exists():
        return given
    path = shipped(f"configs/{given}.yaml")
    if not path.is_file():
        hint = nearest(given, config_names()) or " with provscale"
        raise UserError(f"--cfg {given}: no such file, and no such config{hint} (one of: {', '.join(config_names())})")
    return str(path)


def config_files(arguments: list[str]) -> list[str]:
    """The values of `--cfg`; "" where one is missing."""
    paths = []
    for position, word in enumerate(arguments):
        if word.startswith("--cfg="):
            paths.append(word.removeprefix("--cfg="))
        elif word == "--cfg":
            paths.append(arguments[position + 1] if position + 1 < len(arguments) else "")
    return paths


def check_files(arguments: list[str]) -> None:
    """Raises UserError when a `--cfg` file is missing, unreadable, not YAML, or has an unknown key."""
    known = key_types()
    for path in config_files(arguments):
        if not path:
            raise UserError("--cfg: needs the path of a YAML file, e.g. --cfg configs/demo.yaml")
        for key, value in flat_keys(read_yaml(path), known).items():
            if any(name.startswith(f"{key}.") for name in known):
                raise UserError(f"--cfg {path}: {key} is {shown(value)}, must be a mapping of keys, e.g. "
                                f"'{next(name for name in known if name.startswith(key))}'")  # fmt: skip
            if key not in known:
                raise UserError(f"--cfg {path}: unknown key '{key}'{near_key(key, list(known))}")
            if value is None and not accepts_null(known[key]):
                raise UserError(f"--cfg {path}: {key} is null, must be {wanted(known[key])}")


def read_yaml(path: str) -> dict[str, Any]:
    """The mapping a YAML file holds. Raises UserError: missing or unreadable file, no YAML, no mapping."""
    try:
        content = load_yaml(Path(path).read_text())
    except OSError as error:
        raise UserError(f"--cfg {path}: cannot be read ({error.strerror}); give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise UserError(f"--cfg {path}: is no text file; give the path of a YAML file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise UserError(f"--cfg {path}{where}: is not valid YAML: {getattr(error, 'problem', error)}") from None
    if content is None:
        raise UserError(f"--cfg {path}: is empty; --print_config shows a complete file")
    if not isinstance(content, dict):
        raise UserError(f"--cfg {path}: holds a {type(content).__name__}, must be a mapping of keys")
    return content


def near_key(key: str, known: list[str]) -> str:
    """The nearest valid key: of the whole dotted name, else of its last word."""
    whole = nearest(key, known)
    if whole:
        return whole
    last = {name.rsplit(".", 1)[-1]: name for name in known}
    close = nearest(key.rsplit(".", 1)[-1], list(last))
    return f", did you mean '{last[close.split(chr(39))[1]]}'?" if close else "; --help lists all keys"


def flat_keys(content: dict[str, Any], known: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The dotted keys of a nested mapping; a value below a known key (such as `options`) is not descended into."""
    keys: dict[str, Any] = {}
    for name, value in content.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in known:
            keys.update(flat_keys(value, known, f"{key}."))
        else:
            keys[key] = value
    return keys


def check_options(arguments: list[str]) -> None:
    """Raises UserError for an option that is no key of the config, shortened ones too, and for stray words."""
    known = list(key_types())
    groups = {key.split(".")[0] for key in known if "." in key}
    flags = {"--print_config"}
    takes_value = False
    for word in arguments:
        if not word.startswith("-") or word == "-" or re.match(r"-\.?\d", word):
            if not takes_value:
                raise UserError(f"command line: '{word}' belongs to no option; a config file is given as --cfg FILE")
            takes_value = False
            continue
        option = word.split("=")[0].removesuffix("+")
        key = option.removeprefix("--")
        inside_options = any(key.startswith(f"{name}.") for name in known if name.endswith(".options"))
        if option not in flags and (key == option or key not in {*known, *groups, "cfg"}) and not inside_options:
            raise UserError(f"command line: unknown key '{key}'{near_key(key, known)}")
        takes_value = "=" not in word and option not in flags


def explain(message: str) -> str:
    """One line from a parser's message: which key, what was found, what is allowed."""
    text = re.sub(r"\s+", " ", message).strip()
    known = key_types()
    named = re.search(r'key "([^"]+)"', text) or re.search(r"argument --([\w.]+):", text)
    found = re.search(r"(?:Got|Given) value: (.*)$", text)
    key = named.group(1) if named else ""
    if key in known and found:
        hint = nearest(found.group(1), [str(word) for word in typing.get_args(known[key])])
        return f"{key}: is '{found.group(1)[:120]}', must be {wanted(known[key])}{hint}"
    if key in known and "expected one argument" in text:
        return f"{key}: has no value, must be {wanted(known[key])}"
    unknown = re.search(r"Group '(\w+)' does not accept option '([\w.]+)'", text)
    if unknown:
        name = ".".join(unknown.groups())
        return f"command line: unknown key '{name}'{near_key(name, list(known))}"
    return f"command line: {text[:300]}"
