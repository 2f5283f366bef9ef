"""Finds `configs/` and `launch/`: beside the package in a checkout, inside it in an installed wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """The path of a file that comes with provscale, e.g. `configs/demo.yaml`; it may not exist."""
    inside = PACKAGE / name
    return inside if inside.exists() else PACKAGE.parent / name


def config_names() -> list[str]:
    """What `--cfg NAME` accepts: the stems of configs/*.yaml that `provscale-train` can run."""
    # The others are lists of trainings, for tools/demo.py.
    return sorted(path.stem for path in shipped("configs").glob("*.yaml") if not path.stem.endswith("_tasks"))
