"""docs/configuration.md says what the parser does, and is current."""

from __future__ import annotations

import re

import pytest

from provscale.command_line import key_types
from provscale.data import DATA_SETS
from provscale.synthesis import SYNTHESES
from tools import config_reference


def test_page_is_current() -> None:
    assert config_reference.PAGE.read_text() == config_reference.page(), f"run: {config_reference.COMMAND}"


def test_every_key_and_part_is_there() -> None:
    keys = re.findall(r"^\| `([\w.]+)` \|", config_reference.page(), flags=re.MULTILINE)
    assert sorted(key for key in keys if ".options." not in key) == sorted(key_types())
    for registry, section in ((DATA_SETS, "data"), (SYNTHESES, "synthesis")):
        for name in config_reference.own_names(registry):
            assert f"### {section}.name: {name}\n" in config_reference.page() or name == "none"


@pytest.mark.parametrize(
    "row",
    [
        "| `optim.momentum` | a number: in [0, 1) | `0.9` | of SGD; beta1 of AdamW. |",
        "| `train.max_steps` | an integer: at least 1, or null | `null` | stop after so many optimizer steps; "
        "the schedule ends there too. null = no limit. |",
        "| `data.options.jpeg_quality` | an integer: 1 to 100, or null | `null` |",
        "| `guidance.mask` | one of provenance, random, independent, complement, none | `provenance` |",
    ],
)
def test_ranges_are_those_of_the_checks(row: str) -> None:
    """Copied from `validate`, `DigitLook` and `GuidanceOptions` by hand."""
    assert row in config_reference.page()


def test_check_says_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(config_reference, "page", lambda: "another page")
    assert config_reference.main(["--check"]) == 2
    assert "is not current; run python -m tools.config_reference" in capsys.readouterr().err
