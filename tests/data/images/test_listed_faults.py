"""What may be wrong in `waterbirds`, `iwildcam` and `cub_classification`: named by file and line, before anything is
written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cub_folder import make_cub
from listed_folders import FIRST, MAKE, TABLE, YS, build, make_cub_classification
from tiny_runs import arguments

from provscale.data.splits import training_source
from provscale.errors import UserError
from provscale.train import main
from tools.check_data import main as check_data


def change(path: Path, line: int, old: str, new: str) -> None:
    lines = path.read_text().splitlines()
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new)
    path.write_text("\n".join(lines) + "\n")


FAULTS = [
    ("waterbirds", "metadata.csv", 2, "0,a/0.png,0", "0,a/0.png,7", "line 2: y is '7', must be one of 0, 1"),
    ("waterbirds", "metadata.csv", 3, ",0,0,0,", ",0,3,0,", "line 3: split is '3', must be one of 0, 1, 2"),
    ("waterbirds", "metadata.csv", 3, ",0,0,0,", ",0,0,x,", "line 3: place is 'x', must be one of 0, 1"),
    ("waterbirds", "metadata.csv", 3, "b/1.png", "a/0.png", "line 3: img_filename 'a/0.png' is listed twice"),
    ("waterbirds", "metadata.csv", 3, ",p.jpg", "", "line 3: has not as many cells as the first line"),
    ("waterbirds", "metadata.csv", 1, ",place,", ",spot,", "has no column 'place'"),
    ("waterbirds", "edits/metadata.csv", 2, ",0,", ",2,", "line 2: label is 2, must be one of 0 = landbird"),
    ("waterbirds", "edits/metadata.csv", 3, "../b/1.png", "../a/24.png", "line 3: is an edit of"),
    ("iwildcam", "train_subset.csv", 2, ",0,0.png", ",5,0.png", "line 2: y is '5', must be one of 0, 24"),
    ("iwildcam", "val_subset.csv", 2, ",5,", ",x,", "line 2: location_remapped is 'x', must be an integer from 0"),
    ("iwildcam", "test_subset.csv", 2, "21.png", "0.png", "line 2: filename '0.png' is listed twice"),
    ("iwildcam", "edits/metadata.csv", 2, ",0,", ",7,", "line 2: label is 7, must be one of 0 = background"),
    ("iwildcam", "edits/metadata.csv", 3, "1.png,", "0.png,", "line 3: lists "),
    ("iwildcam", "edits/metadata.csv", 3, "train/1.png", "train/14.png", "line 3: is an edit of"),
    ("iwildcam", "edits/metadata.csv", 3, "train/1.png", "train/x.png", "does not exist, but"),
    ("waterbirds", "edits/metadata.csv", 3, "1.png,0", "x.png,0", "does not exist, but"),
    ("waterbirds", "edits/metadata.csv", 3, ",../b/1.png", ",", "line 3: has neither source_file_name nor"),
    ("cub_classification", "images.txt", 2, " 001", " 001 001", "line 2: has 2 values after the image's number"),
    ("cub_classification", "images.txt", 2, "2 001", "1 001", "line 2: image 1 is listed twice"),
    ("cub_classification", "image_class_labels.txt", 2, "2 1", "2 one", "line 2: is '2 one', must be numbers from 0"),
    ("cub_classification", "image_class_labels.txt", 2, "2 1", "2 0", "image 2 has class '0', must be a number from 1"),
    ("cub_classification", "image_class_labels.txt", 2, "2 1", "99 1", "has no line for image 2"),
    ("cub_classification", "metadata/val/class_labels.txt", 1, ",0", ",3", "line 1: label 3 of "),
    ("cub_classification", "edits/metadata.csv", 3, "train_1", "test_1", "line 3: is an edit of"),
    ("cub_classification", "edits/metadata.csv", 3, "images/001.Albatross/train_1", "CUBV2/001.Albatross/val_1",
     "line 3: is an edit of"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "line", "old", "new", "message"), FAULTS)
def test_a_fault_names_file_and_line(
    tmp_path: Path, name: str, file: str, line: int, old: str, new: str, message: str
) -> None:
    root = MAKE[name](tmp_path / name)
    change(root / file, line, old, new)

    def read_everything() -> None:
        splits = build(name, root)
        training_source(splits, None, 0).label(0)
        for split in (splits.validation, splits.test):
            len(split)  # type: ignore[arg-type]

    with pytest.raises(UserError) as caught:
        read_everything()
    assert message in str(caught.value)
    assert str(root / file).replace("class_labels", "image_ids") in str(caught.value).replace(
        "class_labels", "image_ids"
    )


@pytest.mark.parametrize("name", MAKE)
def test_missing_and_damaged_files(tmp_path: Path, name: str) -> None:
    root = MAKE[name](tmp_path / name)
    (root / FIRST[name]).write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be read as an image"):
        build(name, root).train[0]
    (root / FIRST[name]).unlink()
    with pytest.raises(UserError, match=r"does not exist, but .*line \d+ names it"):
        len(build(name, root).train)
    evaluated = {"waterbirds": 4, "iwildcam": len(YS), "cub_classification": 9}
    assert len(build(name, root).test) == evaluated[name], "test needs no training image"
    (root / TABLE[name]).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=rf"{TABLE[name]}: (cannot be read as CSV|is no text file)"):
        build(name, root)
    (root / TABLE[name]).unlink()
    with pytest.raises(UserError, match="does not exist"):
        build(name, root)
    with pytest.raises(UserError, match=r"data\.root"):
        build(name, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "keep", "message"),
    [
        ("waterbirds", lambda row: row.split(",")[2:5:2] != ["1", "0"] or row.split(",")[3] != "0",
         "its group is waterbird_on_land, of which there is no training image"),
        ("waterbirds", lambda row: row.split(",")[2:4] != ["1", "0"], "its class is waterbird, of which there is no"),
        ("iwildcam", lambda row: row.split(",")[2] != "24", "its class is cattle, of which there is no training image"),
        ("cub_classification", lambda row: "Auklet/train_" not in row, "no training image has label 1"),
    ],
)  # fmt: skip
def test_a_class_or_group_that_training_does_not_have(
    tmp_path: Path, name: str, keep: Callable[[str], bool], message: str
) -> None:
    root = MAKE[name](tmp_path / name)
    table = root / TABLE[name]
    table.write_text("".join(row for row in table.read_text().splitlines(keepends=True) if keep(row)))
    with pytest.raises(UserError, match=message):
        build(name, root)


def test_a_species_with_five_images_has_none_left(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"class 1 \(001\.Albatross\) has at most 5 training images"):
        build("cub_classification", make_cub(tmp_path / "c", train=5))


def test_fewer_edits_than_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of all, or of a class; the training ends with one line and leaves nothing behind."""
    root = make_cub_classification(tmp_path / "c")
    with pytest.raises(UserError, match=r"synthesis\.added: is 10, but there are only 9 edited images"):
        training_source(build("cub_classification", root), 10, seed=0)
    (root / "edits" / "metadata.csv").write_text(
        "".join(
            row for row in (root / "edits/metadata.csv").read_text().splitlines(keepends=True) if "Auklet" not in row
        )
    )
    words = arguments(
        tmp_path, data__name="cub_classification", data__root=root, data__options="{}", synthesis__name="edited",
        synthesis__added=6, model__options="{}",
    )  # fmt: skip
    assert main(words) == 2
    assert "synthesis.added: is 6, of which 2 are to be of class 002.Auklet" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", MAKE)
def test_check_data_lists_all_faults(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = MAKE[name](tmp_path / name)
    words = [f"--data.name={name}", f"--data.root={root}"]
    assert check_data(words) == 0
    assert "complete" in capsys.readouterr().out
    table = root / {"iwildcam": "test_subset.csv", "waterbirds": TABLE[name]}.get(name, "bounding_boxes.txt")
    lines = table.read_text().splitlines()
    lines[-1] += " 5.0" if name == "cub_classification" else ",more"
    table.write_text("\n".join(lines) + "\n")
    (root / FIRST[name]).unlink()
    edits = root / "edits" / "metadata.csv"
    change(edits, 3, ",1," if name == "iwildcam" else ",0,", ",9,")
    # Its own line, or this reader would end at it.
    edits.write_text("".join(row for row in edits.read_text().splitlines(keepends=True) if FIRST[name] not in row))
    assert check_data(words) == 2
    printed = capsys.readouterr()
    wrong = "has 5 values" if name == "cub_classification" else "has not as many cells"
    assert f"{table}, line {len(lines)}: {wrong}" in printed.out
    assert f"{FIRST[name]}: does not exist, but" in printed.out
    assert "line 2: label is 9" in printed.out
    # CUB's last image has no box then.
    assert f"{4 if name == 'cub_classification' else 3} faults, listed above" in printed.err
