"""The config that a run was started with, and which of its keys change what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from provscale.config import Config
from provscale.errors import UserError

# Keys that may change when a run is resumed: they do not change what is trained.
FREE_ON_RESUME = (
    "run.dir",
    "run.tags",
    "run.group",
    "data.root",
    "data.workers",
    "evaluation.batch_size",
    "train.self_check",
)
FREE_SECTIONS = ("tracking.", "checkpoint.")


def changes_training(key: str) -> bool:
    """Whether a dotted key makes a run another training, or gives it another name."""
    return key not in FREE_ON_RESUME and not key.startswith(FREE_SECTIONS)


def read_frozen(path: Path) -> dict[str, Any]:
    """The config a run was started with. Raises UserError when somebody has broken the file."""
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is no longer the config this run was started with; restore it, or choose another "
                        "run.name")  # fmt: skip
    return content


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def refuse_changes(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Raises UserError naming the first key that would make a resumed run another training.

    A key that an older config lacks had its default there.
    """
    old, new = {**flatten(Config().to_dict()), **flatten(before)}, flatten(now)
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key) and changes_training(key):
            raise UserError(
                f"{key}: is {new.get(key)}, but {folder} was started with {old.get(key)}; restore it to resume, or "
                "choose another run.name"
            )
