"""One line of the doctor's report."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Checks = Callable[[], Iterator["Finding"]]


@dataclass(frozen=True)
class Finding:
    """What was found about one thing.

    Attributes:
        state: ok, warning (works, but differently) or missing (does not work).
        about: the thing, in a word or two.
        text: what was found.
        fix: what to do, as a command where there is one; "" if nothing.
        required: whether nothing can be trained without it.
    """

    state: Literal["ok", "warning", "missing"]
    about: str
    text: str
    fix: str = ""
    required: bool = False


def guarded(about: str, checks: Checks) -> list[Finding]:
    """What `checks` finds; a check that fails is itself a finding, never a traceback."""
    found = []
    try:
        for finding in checks():
            found.append(finding)
    except ModuleNotFoundError as error:
        name = str(error.name).split(".")[0]
        found.append(Finding("missing", about, f"{name} is not installed", f"pip install {name}", required=True))
    except Exception as error:  # whatever a broken installation raises
        first = str(error).splitlines()[0] if str(error) else ""
        found.append(Finding("warning", about, f"could not be checked ({type(error).__name__}: {first[:120]})"))
    return found


def output_of(*command: str) -> str | None:
    """What a program prints within 10 seconds; None when it is not there, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
