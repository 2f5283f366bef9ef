"""tools/plot_provenance.py: the panels show what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from provscale.data.images.folder import FolderSplit
from provscale.synthesis.edited import Edited
from tools.plot_provenance import main, pictures


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    """0: the right half brighter by 90. 1: the same with a mask of its own and no source. 2: a smaller source."""
    folder = tmp_path / "edits"
    folder.mkdir()
    source = np.random.default_rng(0).integers(0, 160, (24, 24, 3), dtype=np.uint8)
    edit = source.copy()
    edit[:, 12:] += 90
    own = np.zeros((24, 24), dtype=np.uint8)
    own[:5] = 255
    for name, pixels in (("source", source), ("edit", edit), ("own", own), ("small", source[::2, ::2])):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    for number in range(3):
        Image.fromarray(edit).save(folder / f"{number}.png")
    rows = ["file_name,label,source_file_name,mask_file_name", "0.png,0,source.png,", "1.png,0,,own.png",
            "2.png,0,small.png,"]  # fmt: skip
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_panels(edits: Path) -> None:
    split = FolderSplit(edits, edited=True)
    drawn = dict(pictures(split[0], [Edited()]))
    assert list(drawn) == ["source", "edit", "difference", "otsu", "overlay"]
    np.testing.assert_array_equal(drawn["difference"], np.where(np.arange(24) < 12, 0, 255) * np.ones((24, 1)))
    np.testing.assert_array_equal(drawn["otsu"], np.where(np.arange(24) < 12, 255, 0) * np.ones((24, 1)))
    np.testing.assert_array_equal(drawn["overlay"][:, :12], drawn["edit"][:, :12])
    shaded = (drawn["edit"][:, 12:].astype(int) + np.array([255, 0, 0])) / 2
    assert np.abs(drawn["overlay"][:, 12:] - shaded).max() <= 0.5
    own = dict(pictures(split[1], [Edited(), Edited(provenance="refined")]))
    assert list(own) == ["no source", "edit", "difference", "own mask", "overlay"]
    assert (own["own mask"][:5] == 255).all()
    assert (own["own mask"][5:] == 0).all()


def test_picture_and_mistakes(edits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--edits", str(edits), "--out", str(tmp_path / "new" / "figure.png"), "--source-size", "resize"]
    assert main([*words, "--rows", "0", "1", "2"]) == 0
    with Image.open(tmp_path / "new" / "figure.png") as figure:
        # 7 columns (two methods) of 1.9 and 3 lines of 2 inches, 110 pixels each.
        assert figure.size == (1463, 660)
    (tmp_path / "new" / "figure.png").unlink()
    for wrong, message in ((["--rows", "3"], "--rows: 3 is out of range, must be 0 to 2"),
                           (["--rows", "2", "--source-size", "refuse"], "both must have the same size")):  # fmt: skip
        assert main([*words, *wrong]) == 2
        assert message in capsys.readouterr().err
    assert list((tmp_path / "new").iterdir()) == []
