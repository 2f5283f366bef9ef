"""report.html: one page, self-contained, about one run or several."""

from __future__ import annotations

import base64
import json
import runpy
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import ROOT
from tiny_runs import train

from provscale.run.finished_run import FinishedRun
from provscale.run.pictures import Pictures, gradient_image, mask_image
from provscale.run.report import write_report
from provscale.tracking.metrics_file import read_metrics


class Page(HTMLParser):
    """Collects what a page shows, and everything it would have to load.

    Attributes:
        rows: cells of each table row.
        figures: title, note and the colours of the curves of each chart.
        hidden: whether each of them is folded.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.outside: list[str] = []
        self.rows: list[list[str]] = []
        self.figures: dict[str, dict[str, Any]] = {}
        self.title = self.text = ""
        self.open: list[str] = []
        self.feed(path.read_text())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "img":
            self.images.append(given)
        for name in ("src", "href", "xlink:href"):
            if given.get(name) and not str(given[name]).startswith(("data:", "#")):
                self.outside.append(str(given[name]))
        assert tag not in ("script", "link")
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "figure":
            self.title = ""
            self.figure: dict[str, Any] = {"note": "", "curves": set(), "folded": "details" in self.open}
        elif tag == "path" and "figure" in self.open:
            style = str(given.get("style"))
            self.figure["curves"] |= {word for word in ("var(--run0)", "var(--run1)") if f"stroke: {word}" in style}
        if tag not in ("meta", "img", "path", "use", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass
        if tag == "figure":
            self.figures[self.title] = self.figure

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if "figure" in self.open:
            if self.open[-1] == "h3":
                self.title += data
            elif self.open[-1] == "figcaption":
                self.figure["note"] += data

    def row(self, name: str) -> list[str]:
        """The cells of the first row of that name."""
        return next(row[1:] for row in self.rows if row[0] == name)

    def shown(self) -> list[str]:
        """Titles of the charts that are not folded."""
        return [title for title, figure in self.figures.items() if not figure["folded"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, `baseline` and `guided`, with pictures."""
    folder = tmp_path_factory.mktemp("report")
    common = {"synthesis__name": "edited", "tracking__images": 3, "train__max_steps": 7}
    train(folder, "baseline", guidance__alpha=0, **common)
    train(folder, "guided", tracking__gradients="true", **common)
    return folder


def check_images(page: Page, number: int) -> None:
    assert len(page.images) == number
    for image in page.images:
        assert len(str(image["alt"])) > 10
        kind, content = str(image["src"]).split(";base64,")
        assert kind == "data:image/png"
        assert base64.b64decode(content).startswith(b"\x89PNG\r\n")
    assert page.outside == []


def summary_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


def cells(runs: list[Path], name: str) -> list[str]:
    """What a table must say about a metric on test: best and last epoch of each run."""
    return [f"{summary_of(run)['test'][at][name]:.2f}" for run in runs for at in ("best", "last")]


def test_page_of_one_run(folder: Path) -> None:
    run = folder / "guided"
    page = Page(run / "report.html")
    check_images(page, 3 * 3)  # input, mask and gradient of three samples
    assert "guided: guided" in page.text  # folder and arm
    assert "Where the network looks" in page.text
    summary = summary_of(run)
    assert summary["best_metric"] == "worst_group"
    for name in summary["test"]["last"]:
        assert page.row(name) == cells([run], name)
    assert [f"best epoch ({summary['best_epoch']})", "last (2)"] in [row[1:] for row in page.rows]
    # The metric that decides, and the data set's first; the others are folded.
    assert page.shown() == ["worst_group", "accuracy", "loss_cls", "loss_guidance", "gradient_ratio"]
    assert page.figures["loss"]["folded"]
    assert page.figures["class_balanced"]["folded"]


def test_metrics_that_agree_are_drawn_once(folder: Path, tmp_path: Path) -> None:
    """Up to rounding, as the mean over classes and that over groups on balanced data."""
    rows = read_metrics(folder / "guided" / "metrics.jsonl")
    agreeing = [{**row, "group_mean": row["class_balanced"] * (1 + 1e-12)} if "group_mean" in row else row
                for row in rows]  # fmt: skip
    write_report(tmp_path / "page.html", [altered(folder, tmp_path, "guided", agreeing)])
    page = Page(tmp_path / "page.html")
    assert "group_mean" not in page.figures
    assert page.figures["class_balanced"]["note"] == "ring: best epoch; diamond: test; the same: group_mean"


def test_two_runs_side_by_side(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = runpy.run_path(str(ROOT / "tools" / "report.py"))["main"]
    out, runs = folder / "pages" / "both.html", [folder / "baseline", folder / "guided"]
    assert command([*map(str, runs), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    page = Page(out)
    check_images(page, 3 * 4)
    assert page.rows[0][1:] == ["baseline", "guided"]
    assert page.row("worst_group") == cells(runs, "worst_group")
    assert page.row("guidance.alpha") == ["0", "0.01"]
    assert page.row("input") == ["provenance", "gradient: baseline", "gradient: guided"]
    assert page.figures["loss_cls"]["curves"] == {"var(--run0)", "var(--run1)"}
    assert page.figures["loss_guidance"] == {"note": "0 throughout: baseline", "curves": {"var(--run1)"},
                                             "folded": False}  # fmt: skip
    assert "alpha: 0.01" in page.text


def test_light_dark_and_narrow(folder: Path) -> None:
    """The page follows the reader's screen: no colour is fixed but those of the style sheet, no width but its own."""
    content = (folder / "guided" / "report.html").read_text()
    assert "<meta name=viewport content='width=device-width,initial-scale=1'>" in content
    style, body = content.split("</style>")
    assert "@media(prefers-color-scheme:dark)" in style
    for name in ("back", "text", "line", "run0", "run1", "run2", "run3", "run4", "run5"):
        assert style.count(f"--{name}:#") == 2, "light and dark"
    charts = body.split("<svg")[1:]
    assert charts
    for chart in charts:
        tag, rest = chart.split(">", 1)
        assert " width=" not in tag
        assert "#0" not in rest.split("</svg>")[0].replace('"#', ""), "colours stand in the style sheet"
        assert "var(--run" in rest
    assert body.count("<table") == body.count("<div class=scroll")


def altered(folder: Path, to: Path, name: str, rows: list[dict[str, Any]], **changes: Any) -> Path:
    """A copy of a run with other rows, and other entries of summary.json (None: without it)."""
    run = to / name
    shutil.copytree(folder / name, run)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {**summary_of(run), **changes}
    summary = {key: value for key, value in summary.items() if value is not None}
    (run / "summary.json").write_text(json.dumps(summary))
    return run


def epoch_cells(rows: list[dict[str, Any]], best_epoch: int) -> list[str]:
    """Worst-group accuracy in the best and the last epoch, on the split that selects."""
    values = {row["epoch"]: row["worst_group"] for row in rows if row["kind"] in ("eval", "validation")}
    return [f"{values[best_epoch]:.2f}", f"{values[max(values)]:.2f}"]


def test_a_run_of_before_there_was_a_test_split_beside_a_new_one(folder: Path, tmp_path: Path) -> None:
    rows = read_metrics(folder / "baseline" / "metrics.jsonl")
    old = [{**row, "kind": "eval"} if row["kind"] == "validation" else row for row in rows if row["kind"] != "test"]
    run = altered(folder, tmp_path, "baseline", old, best_metric=None, selected_on=None, test=None, validation=None)
    write_report(tmp_path / "page.html", [run, folder / "guided"])
    page = Page(tmp_path / "page.html")
    splits = [row[0] for row in page.rows if len(row) == 2]
    assert splits[:3] == ["test", "evaluation (chooses the best epoch)", "validation (chooses the best epoch)"]
    best = [summary_of(run)["best_epoch"] for run in (folder / "baseline", folder / "guided")]
    new = read_metrics(folder / "guided" / "metrics.jsonl")
    assert [row[1:] for row in page.rows if row[0] == "worst_group"][:3] == [
        ["", "", *cells([folder / "guided"], "worst_group")],
        [*epoch_cells(old, best[0]), "", ""],
        ["", "", *epoch_cells(new, best[1])],
    ]
    assert page.figures["worst_group"]["note"] == "ring: best epoch; diamond: test"
    write_report(tmp_path / "page.html", [run])
    page = Page(tmp_path / "page.html")
    assert page.row("accuracy")
    assert page.figures["accuracy"]["note"] == "ring: best epoch"


def test_a_run_that_selects_on_test_shows_it_once(folder: Path, tmp_path: Path) -> None:
    run = altered(folder, tmp_path, "guided", read_metrics(folder / "guided" / "metrics.jsonl"), selected_on="test")
    write_report(tmp_path / "page.html", [run])
    page = Page(tmp_path / "page.html")
    assert {row[0] for row in page.rows if len(row) == 2 and row[1] == ""} == {"test (chooses the best epoch)"}
    assert page.figures["worst_group"]["note"] == "ring: best epoch"


def test_the_deciding_metric_of_a_run_that_does_not_name_it(folder: Path) -> None:
    """The first that peaks in the best epoch, where it is neither in the summary nor in the config."""
    run = FinishedRun.read(folder / "guided")
    run.summary = {"best_epoch": 2}
    run.tested = {}
    for second, expected in ((3.0, "a"), (0.5, "b")):
        run.epochs = [{"epoch": 1, "a": 1.0, "b": 1.0}, {"epoch": 2, "a": second, "b": 2.0}]
        assert run.best_metric == expected
    run.summary["best_metric"] = "c"
    assert run.best_metric == "c"


def test_every_loss_is_shown_by_its_name(folder: Path, tmp_path: Path) -> None:
    rows = [{**row, "loss_area": 0.5} if row["kind"] == "train" else row
            for row in read_metrics(folder / "guided" / "metrics.jsonl")]  # fmt: skip
    run = altered(folder, tmp_path, "guided", rows)
    write_report(tmp_path / "page.html", [folder / "baseline", run])
    page = Page(tmp_path / "page.html")
    assert page.shown()[-4:] == ["loss_cls", "loss_guidance", "loss_area", "gradient_ratio"]
    assert page.figures["loss_area"]["curves"] == {"var(--run1)"}


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
    run = FinishedRun.read(folder / "guided")
    assert [row["step"] for row in run.train if row["kind"] == "train"] == list(range(1, 8))
    assert [row["epoch"] for row in run.epochs] == [1, 2]
    assert [row["epoch"] for row in run.tested.values()] == [2, run.best_epoch]
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


def test_a_further_section(folder: Path, tmp_path: Path) -> None:
    write_report(tmp_path / "page.html", [folder / "guided"], more="<h2>A curve &amp; more</h2>")
    assert "A curve & more" in Page(tmp_path / "page.html").text
