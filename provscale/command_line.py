"""The command line: config dataclasses <- YAML (`--cfg`) <- options (`--guidance.alpha 0.05`).

A mistake raises UserError with one line, before anything runs.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from provscale import config as config_module
from provscale.config import Config, validate
from provscale.errors import UserError
from provscale.registry import nearest


def all_keys(cls: type = Config, prefix: str = "") -> list[str]:
    """Every key a config accepts, dotted, e.g. `guidance.alpha`."""
    keys = []
    for entry in fields(cls):
        # With postponed annotations a field's type is its name; nested configs are this module's dataclasses.
        nested = getattr(config_module, str(entry.type), None)
        if nested is not None and is_dataclass(nested):
            keys += all_keys(nested, f"{prefix}{entry.name}.")  # type: ignore[arg-type]
        else:
            keys.append(prefix + entry.name)
    return keys


def build_parser() -> ArgumentParser:
    """The command line: `--cfg FILE` and one option for every key."""
    parser = ArgumentParser(
        prog="train.py",
        exit_on_error=False,
        description="Trains with provenance guidance. Start it with `accelerate launch`.",
    )
    parser.add_argument("--cfg", action="config", help="YAML file; options after it override its keys.")
    for entry in fields(Config):
        nested = getattr(config_module, str(entry.type), None)
        if nested is not None and is_dataclass(nested):
            parser.add_class_arguments(nested, entry.name)
        else:
            parser.add_argument(f"--{entry.name}", type=int, default=entry.default, help="Seed of everything random.")
    return parser


def parse(arguments: list[str]) -> Config:
    """Reads the command line (without the program's name).

    Raises:
        UserError: unreadable file, unknown key, wrong type, or a combination that cannot work.
        SystemExit: with code 0, after `--help`.
    """
    check_files(arguments)
    check_options(arguments)
    parser = build_parser()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            namespace = parser.parse_args(arguments)
            namespace = parser.instantiate_classes(namespace)
    except SystemExit as error:
        if error.code in (0, None):
            raise
        raise UserError("command line: could not be read; see --help") from error
    except Exception as error:  # jsonargparse raises ArgumentError, TypeError, ValueError and NSKeyError alike
        raise UserError(explain(str(error))) from None
    config = to_config(namespace)
    validate(config)
    return config


def to_config(namespace: Namespace) -> Config:
    return Config(**{entry.name: namespace[entry.name] for entry in fields(Config)})


def check_files(arguments: list[str]) -> None:
    """Raises UserError when a `--cfg` file is missing, unreadable, not YAML, or has an unknown key."""
    known = all_keys()
    for position, word in enumerate(arguments):
        if word == "--cfg" or word.startswith("--cfg="):
            path = word[6:] if "=" in word else (arguments[position + 1] if position + 1 < len(arguments) else "")
            try:
                content = yaml.safe_load(Path(path).read_text())
            except OSError as error:
                raise UserError(f"--cfg {path or '(nothing)'}: cannot be read ({error.strerror})") from None
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                first = str(error).replace("\n", " ")
                raise UserError(f"--cfg {path}: is not valid YAML: {first}") from None
            if not isinstance(content, dict):
                raise UserError(f"--cfg {path}: holds {type(content).__name__}, must be a mapping of keys") from None
            for key in flat_keys(content, known):
                if key not in known:
                    raise UserError(f"--cfg {path}: unknown key '{key}'{near_key(key, known)}")


def near_key(key: str, known: list[str]) -> str:
    """The nearest valid key: of the whole dotted name, else of its last word."""
    whole = nearest(key, known)
    if whole:
        return whole
    last = {name.rsplit(".", 1)[-1]: name for name in known}
    close = nearest(key.rsplit(".", 1)[-1], list(last))
    return f", did you mean '{last[close.split(chr(39))[1]]}'?" if close else "; --help lists all keys"


def flat_keys(content: dict[str, Any], known: list[str], prefix: str = "") -> list[str]:
    """The dotted keys of a nested mapping; a value below a known key (such as `options`) is not descended into."""
    keys = []
    for name, value in content.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in known:
            keys += flat_keys(value, known, f"{key}.")
        elif not (value is None and any(other.startswith(f"{key}.") for other in known)):
            keys.append(key)
    return keys


def check_options(arguments: list[str]) -> None:
    """Raises UserError for an option that is no key of the config."""
    known = all_keys()
    groups = {key.split(".")[0] for key in known if "." in key}
    accepted = {*known, *groups, "cfg", "help", "print_config"}
    for word in arguments:
        if not word.startswith("--") or word == "--":
            continue
        key = word[2:].split("=")[0].removesuffix("+")
        inside_options = any(key.startswith(f"{name}.") for name in known if name.endswith(".options"))
        if key not in accepted and not inside_options:
            raise UserError(f"command line: unknown key '{key}'{near_key(key, known)}")


def explain(message: str) -> str:
    """One line from a parser's message: which key, what was found, what is allowed."""
    text = re.sub(r"\s+", " ", message).strip()
    found = re.search(r'key "([^"]+)":?\s*(.*)', text)
    return f"{found.group(1)}: {found.group(2)[:300]}" if found else f"command line: {text[:300]}"
