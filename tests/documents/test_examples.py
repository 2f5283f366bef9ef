"""Every example trains a network that tells digits apart, by the loss that Eq. 1 says."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from paths import ROOT

EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.name != "digits.py")


@pytest.fixture(autouse=True)
def beside_the_example(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Imports as in `python examples/NAME.py`, and no engine's state left for the next test."""
    from accelerate.state import AcceleratorState, GradientState

    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    yield
    sys.modules.pop("digits", None)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_example_trains(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(path), run_name="example")
    rows = example["main"]()
    assert len(rows) == 60, "three epochs of 1000 images in batches of 50"
    for row in rows:
        assert row["loss"] == pytest.approx(row["loss_cls"] + 0.05 * row["loss_guidance"], rel=1e-5)
        assert row["loss_guidance"] > 0
    found = re.search(r"test accuracy ([\d.]+) %", capsys.readouterr().out)
    # About 88 %; guessing gives 10 %.
    assert found is not None
    assert float(found.group(1)) > 75


def test_examples_are_short_and_documented() -> None:
    page = (ROOT / "README.md").read_text()
    assert len(EXAMPLES) == 5
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) < 60, path
        assert f"examples/{path.name}" in page
