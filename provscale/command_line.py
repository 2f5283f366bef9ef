"""The command line: config dataclasses <- YAML (`--cfg`) <- options (`--guidance.alpha 0.05`).

A mistake raises UserError with one line, before anything runs.
"""

from __future__ import annotations

import contextlib
import io
import re
import types
import typing
import warnings
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, set_loader

from provscale.config import Config, validate
from provscale.errors import UserError
from provscale.registry import nearest


class StrictLoader(yaml.SafeLoader):
    """YAML as people write configs: only true and false are booleans (`precision: no` is a word), 1e-3 is a number,
    and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key.value}' is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
StrictLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"),
                                   list("tTfF"))  # fmt: skip
StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+0123456789."),
)


def load_yaml(text: str) -> Any:
    return yaml.load(text, StrictLoader)


set_loader("provscale", load_yaml, exceptions=(yaml.YAMLError,))


def key_types(cls: type = Config, prefix: str = "") -> dict[str, Any]:
    """Every key a config accepts, dotted, e.g. `guidance.alpha`, with its type."""
    keys: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(cls).items():
        if is_dataclass(hint):
            keys.update(key_types(hint, f"{prefix}{name}."))  # type: ignore[arg-type]
        else:
            keys[prefix + name] = hint
    return keys


def build_parser() -> ArgumentParser:
    """The command line: `--cfg FILE` and one option for every key."""
    parser = ArgumentParser(
        prog="train.py",
        exit_on_error=False,
        parser_mode="provscale",
        allow_abbrev=False,
        description="Trains with provenance guidance. Start it with `accelerate launch`.",
    )
    parser.add_argument("--cfg", action="config", help="YAML file; options after it override its keys.")
    for name, hint in typing.get_type_hints(Config).items():
        if is_dataclass(hint):
            parser.add_class_arguments(hint, name)
        else:
            default = getattr(Config, name)
            parser.add_argument(f"--{name}", type=hint, default=default, help="Seed of everything random.")
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
    except UserError:
        raise
    except Exception as error:  # jsonargparse raises ArgumentError, TypeError, ValueError and NSKeyError alike
        raise UserError(explain(str(error))) from None
    config = to_config(namespace)
    validate(config)
    return config


def to_config(namespace: Namespace) -> Config:
    return Config(**{entry.name: namespace[entry.name] for entry in fields(Config)})


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
    flags = {"--help", "-h", "--print_config"}
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


def accepts_null(hint: Any) -> bool:
    return isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint)


def wanted(hint: Any) -> str:
    """What a key of this type takes, in words."""
    if accepts_null(hint):
        (other,) = (part for part in typing.get_args(hint) if part is not type(None))
        return f"{wanted(other)}, or null"
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(typing.get_args(hint))
    if typing.get_origin(hint) is list:
        return "a list of words, e.g. [first, second]"
    if typing.get_origin(hint) is dict:
        return "a mapping, e.g. {name: value}"
    names = {float: "a finite number", int: "an integer", bool: "true or false", str: "text (in YAML quotes if digits)"}
    return names[hint]


def shown(value: Any) -> str:
    """A value as YAML writes it, on one line."""
    return yaml.safe_dump(value, default_flow_style=True).split("\n")[0][:120] if value is not None else "null"


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
