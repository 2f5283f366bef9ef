"""Python and its packages, against what pyproject.toml asks for and constraints.txt was tested with."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from provscale.doctor.finding import Finding
from provscale.openmmlab import INSTALL, missing_modules
from provscale.shipped import shipped

# What is not in Python itself is imported where it is used: it may be what is missing.
if TYPE_CHECKING:
    from packaging.requirements import Requirement

OLDEST_PYTHON = (3, 11)
EXTRAS = {
    "demo": "the embedded data (`make demo`)",
    "zero": "DeepSpeed ZeRO-1/2/3 (launch/zero*.yaml)",
    "skeleton-demo": "data.name planted_actions",
    "puzzlemix": "synthesis.options.solver swap",
    "segment": "synthesis.options.provenance segmented",
}
"""Extras of pyproject.toml that users need, and for what."""


def installed(name: str) -> str | None:
    """The installed version of a distribution, without importing it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements() -> list[Requirement]:
    """What provscale asks for, extras with their marker: of the checkout, else of the installed wheel."""
    from packaging.requirements import Requirement

    pyproject = shipped("pyproject.toml")
    if not pyproject.is_file():
        return [Requirement(line) for line in importlib.metadata.requires("provscale") or []]
    import tomllib

    project = tomllib.loads(pyproject.read_text())["project"]
    lines = list(project["dependencies"])
    for extra, wanted in project["optional-dependencies"].items():
        lines += [f'{line}; extra == "{extra}"' for line in wanted]
    return [Requirement(line) for line in lines]


def python() -> Iterator[Finding]:
    """The interpreter."""
    text = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info[:2] >= OLDEST_PYTHON:
        yield Finding("ok", "Python", text)
    else:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        yield Finding("missing", "Python", text, f"make an environment with Python {oldest} or newer", required=True)


def packages() -> Iterator[Finding]:
    """The dependencies, and which versions differ from those that were tested together."""
    from packaging.version import Version

    needed = [wanted for wanted in requirements() if wanted.marker is None]
    wrong = unmet(needed)
    for wanted, found in wrong:
        text = f"{wanted.name} {found} is not {wanted.specifier}" if found else f"{wanted.name} is not installed"
        yield Finding("missing", "packages", text, f"pip install '{plain(wanted)}'", required=True)
    if not wrong:
        torch = installed("torch")
        yield Finding("ok", "packages", f"all {len(needed)} dependencies, torch {torch}, timm {installed('timm')}, "
                      f"accelerate {installed('accelerate')}")  # fmt: skip
    constraints = shipped("constraints.txt")
    if constraints.is_file():
        pins, others = tested_versions(constraints), []
        for name, version in pins.items():
            found = installed(name)
            if found is not None and Version(found).public != version:
                others.append(f"{name} {found} (tested: {version})")
        if others:
            yield Finding("warning", "versions", ", ".join(others), f"pip install --constraint {constraints} provscale")
        else:
            yield Finding("ok", "versions", "those that were tested together (constraints.txt)")


def tested_versions(constraints: Path) -> dict[str, str]:
    """The pins of constraints.txt by distribution."""
    lines = (line.split("#")[0].strip() for line in constraints.read_text().splitlines())
    return dict(line.split("==") for line in lines if line)


def plain(wanted: Requirement) -> str:
    """A requirement without its marker, as pip takes it."""
    extras = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
    return f"{wanted.name}{extras}{wanted.specifier}"


def unmet(wanted: list[Requirement]) -> list[tuple[Requirement, str | None]]:
    """Requirements that no installed version fulfils, each with the version that is there."""
    pairs = [(one, installed(one.name)) for one in wanted]
    return [(one, found) for one, found in pairs if found is None or not one.specifier.contains(found, True)]


def extras() -> Iterator[Finding]:
    """Optional parts, each by its extra; OpenMMLab, which no extra can install; W&B's login."""
    for extra, purpose in EXTRAS.items():
        # A marker as `extra == "zero"` holds for that extra and for no other.
        wanted = [one for one in requirements() if one.marker is not None and one.marker.evaluate({"extra": extra})]
        lacking = [one.name for one, _ in unmet(wanted)]
        if extra == "demo" and importlib.util.find_spec("vpython") is None:
            lacking.append("vpython")
        if lacking:
            fix = f"pip install 'provscale[{extra}]'" if lacking != ["vpython"] else ""
            fix += " && pip install --no-deps vpython" if "vpython" in lacking else ""
            yield Finding("missing", extra, f"{', '.join(lacking)} not installed, for {purpose}",
                          fix.removeprefix(" && "))  # fmt: skip
        else:
            yield Finding("ok", extra, purpose)
    if missing := missing_modules():
        yield Finding("missing", "OpenMMLab", f"{', '.join(missing)} not installed, for skeletons by HRNet and models "
                      "posec3d, stgcn", INSTALL.replace("PATH/OF/python", sys.executable))  # fmt: skip
    else:
        yield Finding("ok", "OpenMMLab", "installed; does it run: python -m tools.try_openmmlab")
    from provscale.tracking.wandb import has_wandb_login

    if has_wandb_login():
        yield Finding("ok", "W&B", "a login is at hand (--tracking.wandb online)")
    else:
        yield Finding("warning", "W&B", "no login: runs are recorded offline", "wandb login, or export WANDB_API_KEY")
