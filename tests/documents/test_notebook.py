"""The code cells of examples/provscale.ipynb run one after the other, as a script, on less data than they ask for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from paths import ROOT

NOTEBOOK = json.loads((ROOT / "examples" / "provscale.ipynb").read_text())
LOOK = "classes: [3, 5], textures: [metal, wood], object: plate, digit_scale: [0.6, 0.8]"
COUNTS = "train: 100, edits: 60, validation: 40, test: 40"
LESS = {
    "EPOCHS = 20": "EPOCHS = 1",
    '"--cfg", "demo",': f'"--cfg", "demo", "--data.options={{{LOOK}, {COUNTS}}}",',
}


def test_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    code = "\n\n".join("".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code")
    for whole, less in LESS.items():
        assert code.count(whole) == 1
        code = code.replace(whole, less)
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(code, "provscale.ipynb", "exec"), names)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["notebook-alpha-0", "notebook-alpha-1"]
    assert (
        len(re.findall(r"worst group +[\d.]+ %   accuracy +[\d.]+ %   outside +[\d.]+ %", capsys.readouterr().out)) == 2
    )
    import matplotlib.pyplot as plt

    assert len(names["figure"].axes) == 24, "four rows of six pictures"  # type: ignore[attr-defined]
    plt.close("all")


def test_jupyter_reads_it() -> None:
    """Format 4.5; it may come with outputs, then with those of every cell that prints or draws, and without errors."""
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    with_outputs = any(cell.get("outputs") for cell in NOTEBOOK["cells"])
    for cell in NOTEBOOK["cells"]:
        assert set(cell) >= {"id", "cell_type", "metadata", "source"}
        shows = cell["cell_type"] == "code" and re.search(r"print\(|plt\.show\(", "".join(cell["source"])) is not None
        assert bool(cell.get("outputs")) == (shows and with_outputs)
        assert all(output["output_type"] in ("stream", "display_data") for output in cell.get("outputs", []))
