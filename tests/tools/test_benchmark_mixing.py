"""The cost of mixing is measured for every synthesis of images, beside the step."""

from __future__ import annotations

import pytest

from tools.benchmark import mixing


def test_every_arm_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert mixing.main(["--backbone", "deit_small_sat", "--batch", "2", "--size", "32", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| deit_small_sat, 2 x 32 px | ms per batch")
    names = [line.split("|")[1].strip() for line in lines[2:]]
    assert names[0] == "CutMix"
    assert names[-2:] == ["saliency", "guided step"]
    assert {"ResizeMix", "PuzzleMix, exact"} < set(names)
    assert lines[-1].split("|")[3].strip() == "1e+02"
