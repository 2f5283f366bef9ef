"""report.html: one page, self-contained, about one run or several."""

from __future__ import annotations

import base64
import json
import runpy
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from paths import ROOT
from tiny_runs import train

from provscale.run.pictures import Pictures, gradient_image, mask_image
from provscale.run.report import Run, write_report


class Page(HTMLParser):
    """Collects what a page shows, and everything it would have to load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.outside: list[str] = []
        self.cells: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(path.read_text())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "img":
            self.images.append(given)
        for name in ("src", "href"):
            if given.get(name) and not str(given[name]).startswith("data:"):
                self.outside.append(str(given[name]))
        assert tag not in ("script", "link")
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, `baseline` and `guided`, with pictures."""
    folder = tmp_path_factory.mktemp("report")
    common = {"synthesis__name": "edited", "tracking__images": 3, "train__max_steps": 7}
    train(folder, "baseline", guidance__alpha=0, **common)
    train(folder, "guided", **common)
    return folder


def check_images(page: Page, number: int) -> None:
    assert len(page.images) == number
    for image in page.images:
        assert len(str(image["alt"])) > 10
        kind, content = str(image["src"]).split(";base64,")
        assert kind == "data:image/png"
        assert base64.b64decode(content).startswith(b"\x89PNG\r\n")
    assert page.outside == []


def test_page_of_one_run(folder: Path) -> None:
    page = Page(folder / "guided" / "report.html")
    check_images(page, 2)
    assert "Results" in page.text
    assert "Curves" in page.text
    assert "Where the network looks" in page.text
    summary = json.loads((folder / "guided" / "summary.json").read_text())
    assert f"{summary['best_epoch']} (best)" in page.cells
    for name, value in summary["test"]["last"].items():
        assert name in page.cells
        assert f"{value:.2f}" in page.cells


def test_two_runs_side_by_side(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = runpy.run_path(str(ROOT / "tools" / "report.py"))["main"]
    out = folder / "pages" / "both.html"
    assert command([str(folder / "baseline"), str(folder / "guided"), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    page = Page(out)
    check_images(page, 2)
    assert {"baseline", "guided"} <= set(page.cells)
    assert page.cells.count("best epoch") == 2
    bests = [json.loads((folder / name / "summary.json").read_text())["best_epoch"] for name in ("baseline", "guided")]
    assert [cell for cell in page.cells if cell.endswith("(best)")] == [f"{best} (best)" for best in bests]
    assert "alpha: 0.01" in page.text


def test_more_figures_below_their_headings(folder: Path, tmp_path: Path) -> None:
    write_report(tmp_path / "page.html", [folder / "guided"], {"A curve & more": Figure()})
    page = Page(tmp_path / "page.html")
    check_images(page, 3)
    assert "A curve & more" in page.text
    assert page.images[-1]["alt"] == "A curve & more"


def test_run_names_are_text_not_markup(folder: Path, tmp_path: Path) -> None:
    odd = tmp_path / "<b>&amp;"
    odd.symlink_to(folder / "guided")
    write_report(tmp_path / "page.html", [odd])
    assert "<b>&amp;</h1>" not in (tmp_path / "page.html").read_text()
    assert "<b>&amp;" in Page(tmp_path / "page.html").text


def test_report_command_mistakes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = runpy.run_path(str(ROOT / "tools" / "report.py"))["main"]
    for words, part in (
        ([str(folder), "--out", str(folder / "x.html")], "is no folder of a finished run"),
        ([str(folder / "guided"), "--out", "/dev/null/x.html"], "--out: /dev/null/x.html cannot be written"),
    ):
        assert command(words) == 2
        error = capsys.readouterr().err
        assert part in error
        assert error.count("\n") == 1
    assert not (folder / "x.html").exists()


def test_run_reads_what_was_written(folder: Path) -> None:
    run = Run.read(folder / "guided")
    assert [row["step"] for row in run.train] == list(range(1, 8))
    assert [row["epoch"] for row in run.evaluations] == [1, 2]
    assert run.pictures is not None
    assert run.pictures.images.shape == (3, 32, 32, 3)
    assert run.pictures.gradients.min() >= 0
    assert run.pictures.gradients.max() > 0


def test_pictures_survive_the_disk(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    before = Pictures(
        generator.integers(0, 256, (2, 4, 5, 3), dtype=np.uint8),
        generator.random((2, 4, 5), dtype=np.float32),
        generator.random((2, 4, 5), dtype=np.float32),
        ["a.png", "b.png"],
    )
    before.save(tmp_path / "pictures.npz")
    after = Pictures.load(tmp_path / "pictures.npz")
    for name in ("images", "masks", "gradients"):
        assert np.array_equal(getattr(before, name), getattr(after, name))
    assert after.names == before.names


def test_colours_of_masks_and_gradients() -> None:
    """Mask: share times 255. Gradient: zero is magma's first colour, the 99th percentile and above its last."""
    assert mask_image(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))[0, :, 0].tolist() == [0, 128, 255]
    gradient = np.zeros((10, 20), dtype=np.float32)
    gradient[0, :5] = 7.0
    shown = gradient_image(gradient)
    assert shown[9, 9].tolist() == [0, 0, 3]
    assert shown[0, 0].tolist() == [251, 252, 191]
    assert gradient_image(np.zeros((3, 3), dtype=np.float32)).max() == 3
