"""tools/check_masks.py and tools/benchmark/repaint_edits.py on a manifest whose masks are known."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools import check_masks
from tools.benchmark import repaint_edits


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    """Four edits: the left half is kept, the right half brighter by 90; in the last one two rows of it are not."""
    folder = tmp_path / "edits"
    folder.mkdir()
    generator = np.random.default_rng(0)
    rows = ["file_name,label,source_file_name,object_mask_file_name"]
    for number in range(4):
        source = generator.integers(0, 160, (20, 20, 3), dtype=np.uint8)
        edit, mask = source.copy(), np.zeros((20, 20), np.uint8)
        mask[:, :10] = 255
        edit[2 * (number == 3) :, 10:] += 90
        for name, pixels in (("source", source), ("edit", edit), ("mask", mask)):
            Image.fromarray(pixels).save(folder / f"{name}{number}.png")
        rows.append(f"edit{number}.png,0,source{number}.png,mask{number}.png")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


def results(edits: Path, *words: str) -> dict[str, check_masks.Result]:
    return check_masks.of_manifest(check_masks.parser().parse_args(["--edits", str(edits), *words]))


def test_shares_are_those_counted_by_hand(edits: Path) -> None:
    """Three masks are exact; the fourth calls 20 of 200 edited pixels unedited: IoU 200 / 220, leak 0.1."""
    found = results(edits, "--provenance", "otsu")["otsu"]
    assert (found.number, found.recall, found.one_value) == (4, 1.0, 0)
    assert found.iou == pytest.approx((3 + 200 / 220) / 4)
    assert found.leak == pytest.approx(0.1 / 4)


def test_rows_and_limit_choose_edits(edits: Path) -> None:
    assert results(edits, "--provenance", "otsu", "--rows", "even")["otsu"].iou == 1.0
    odd = results(edits, "--provenance", "otsu", "refined", "--rows", "odd", "--limit", "1")
    assert list(odd) == ["otsu", "refined"]
    assert (odd["otsu"].number, odd["otsu"].iou) == (1, 1.0)


def test_the_table_goes_to_standard_output(edits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_masks.show(["--edits", str(edits), "--provenance", "otsu"])
    assert "0.977" in capsys.readouterr().out  # (3 + 200 / 220) / 4


def test_repainting_edits_a_part_of_the_object_alone(edits: Path, tmp_path: Path) -> None:
    out = tmp_path / "repainted"
    assert repaint_edits.main([str(edits), str(out)]) == 0
    with (out / "metadata.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for number, row in enumerate(rows):
        before, after = (np.array(Image.open(path)).astype(int) for path in (edits / f"edit{number}.png",
                                                                           out / row["file_name"]))  # fmt: skip
        mask = np.array(Image.open(out / row["object_mask_file_name"])) > 0
        assert not mask[:, 10:].any()
        assert 0.6 <= mask[:, :10].mean() <= 0.9
        changed = np.abs(before - after).max(axis=2) > 8
        assert changed[:, :10][~mask[:, :10]].mean() > 0.8
        assert not changed[:, 16:].any()  # farther than the brush is soft
        assert (out / row["source_file_name"]).is_file()
    assert repaint_edits.main([str(edits), str(out)]) == 2


def test_the_masks_of_a_config_go_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """Edits without compression: the difference is nonzero nowhere on the digit, so none of its pixels is lost."""
    words = ["--data.name=digits", "--data.options={train: 4, edits: 4, test: 2}", "--synthesis.name=edited"]
    (found,) = check_masks.of_config(words).values()
    assert (found.number, found.recall) == (4, 1.0)
    check_masks.show(words)
    printed = capsys.readouterr()
    assert "1.000" in printed.out
    assert printed.err == ""
