"""A limit of time for measurements: what does not fit is left out and named, and so is what fails."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from provscale.errors import UserError

T = TypeVar("T")


class OutOfTime(BaseException):
    """Raised where a measurement is when its time ends; no `except Exception` on the way (a compiler's) stops it."""


class Budget:
    """Minutes that all measurements together may take, from now on; None is no limit, and then errors are raised.

    A machine that is lent for minutes shall show all it can: one network that fails there does not end the others.

    Attributes:
        left_out: what was not measured, each with its reason.
        failed: whether anything was left out for another reason than time.
    """

    def __init__(self, minutes: float | None) -> None:
        self.minutes = minutes
        self.end = time.monotonic() + 60 * (minutes or 0)
        self.left_out: list[str] = []
        self.failed = False

    def take(self, name: str, action: Callable[..., T], *arguments: object) -> T | None:
        """What `action(*arguments)` returns; None, and `name` in `left_out`, where time ended or it failed."""
        print(f"[benchmark] {name}", file=sys.stderr, flush=True)
        if self.minutes is None:
            return action(*arguments)
        remaining = self.end - time.monotonic()
        if remaining <= 0:
            self.leave_out(name, "no time left")
            return None
        try:
            with alarm(remaining):
                return action(*arguments)
        except OutOfTime:
            self.leave_out(name, "ended by the limit of time")
        except Exception as error:
            self.failed = True
            self.leave_out(name, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}")
        return None

    def leave_out(self, name: str, reason: str) -> None:
        self.left_out.append(f"{name} ({reason})")

    def close(self) -> None:
        """Says what is missing.

        Raises:
            UserError: something failed.
        """
        for entry in self.left_out:
            print(f"left out: {entry}")
        if self.failed:
            raise UserError(
                "benchmark: what is measured is written, but some measurements failed; see 'left out' above"
            )


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raises `OutOfTime` in the main thread after so many seconds, and again until the block is left."""
    inside = True

    def ring(number: int, frame: FrameType | None) -> None:
        if inside:
            raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)
    try:
        yield
    finally:
        inside = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
