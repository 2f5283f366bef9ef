"""Which changes of a config a resumed run allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from provscale.config import Config
from provscale.errors import UserError
from provscale.run.frozen_config import refuse_changes


def test_a_key_that_is_newer_than_the_run_had_its_default() -> None:
    before, now = Config().to_dict(), Config().to_dict()
    del before["guidance"]["alpha_steps"]
    refuse_changes(before, now, Path("run"))
    now["guidance"]["alpha_steps"] = 7
    with pytest.raises(UserError, match=r"guidance\.alpha_steps: is 7, but run was started with 20; restore it"):
        refuse_changes(before, now, Path("run"))
