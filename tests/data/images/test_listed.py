"""Data sets `waterbirds` and `iwildcam`: splits, constructions, edits, a training, and what may be wrong in them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from listed_folders import YS, make_iwildcam, make_waterbirds
from PIL import Image
from tiny_runs import arguments, rows

from provscale.config import DataConfig
from provscale.data import build_splits
from provscale.data.images.iwildcam import WithoutCaptions
from provscale.data.splits import DataSplits, item_id, training_source
from provscale.errors import UserError
from provscale.train import main
from tools.check_data import main as check_data

MAKE = {"waterbirds": make_waterbirds, "iwildcam": make_iwildcam}


def build(name: str, root: Path, **options: object) -> DataSplits:
    return build_splits(DataConfig(name=name, root=str(root), image_size=28, options=dict(options)), 0)


def ids(source: object) -> list[str]:
    return [item_id(source, index) for index in range(len(source))]  # type: ignore[arg-type]


def test_waterbirds_alia(tmp_path: Path) -> None:
    """Fitting images are 0 to 7 (landbirds) and 12 to 19 (waterbirds), even numbers of species a."""
    splits = build("waterbirds", make_waterbirds(tmp_path / "w"))
    assert splits.validation is not None
    assert ids(splits.train) == ["a/0.png", "a/12.png", "b/1.png", "b/13.png"]
    assert ids(splits.validation) == ["a/20.png", "b/23.png"]
    assert [splits.test[index].annotations["group"] for index in range(4)] == [0, 1, 2, 3]
    assert splits.train[0].annotations == {}
    assert splits.training_groups == (8, 2, 2, 8)
    expected = torch.from_numpy(np.array(Image.open(tmp_path / "w" / "b" / "1.png")).transpose(2, 0, 1).copy())
    assert torch.equal(splits.train[2].inputs, expected)
    assert (splits.best, splits.extra_counts) == ("accuracy", (3, 3))
    extra = build("waterbirds", tmp_path / "w", extra=True)
    assert ids(extra.train)[4:] == ["b/21.png", "a/22.png", "a/8.png", "b/9.png", "a/10.png", "b/11.png"]


def test_waterbirds_group_dro(tmp_path: Path) -> None:
    splits = build("waterbirds", make_waterbirds(tmp_path / "w"), construction="group_dro")
    assert splits.validation is not None
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (20, 4, 4)
    assert splits.best == "worst_group"
    with pytest.raises(UserError, match=r"data\.options\.extra"):
        build("waterbirds", tmp_path / "w", construction="group_dro", extra=True)


@pytest.mark.parametrize("subset", ["alia", "wilds"])
def test_iwildcam(tmp_path: Path, subset: str) -> None:
    splits = build("iwildcam", make_iwildcam(tmp_path / "i"), subset=subset)
    assert splits.validation is not None
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (14, 7, 7)
    assert [splits.train.label(index) for index in range(14)] == [*range(7), *range(7)]
    places = (3, 5, 7, 9) if subset == "alia" else (3, 5, 7)
    assert splits.group_names == tuple(f"location_{place}" for place in places)
    assert splits.test[0].annotations["group"] == 2
    assert splits.mean == pytest.approx((0, 0, 0))
    assert splits.extra_counts == ((2, 1, 1, 1, 1, 1, 1) if subset == "alia" else None)
    assert splits.best == "macro_f1"


def test_iwildcam_extra_and_normalisation(tmp_path: Path) -> None:
    splits = build("iwildcam", make_iwildcam(tmp_path / "i"), extra=True, normalise=True)
    assert len(splits.train) == 14 + 8
    assert splits.mean == pytest.approx((0.485, 0.456, 0.406))


def test_captions_are_cut_off() -> None:
    """Of an image of 448 rows, those before 10 and from 410 on leave no trace."""
    image = torch.zeros(3, 448, 448)
    image[:, :8], image[:, 414:] = 1, 1
    cut = WithoutCaptions(224)(image)
    assert cut.shape == (3, 224, 224)
    assert cut.abs().max() == 0
    image[:, 200:210] = 1
    assert WithoutCaptions(224)(image).max() == pytest.approx(1)


def test_added_edits_have_the_classes_of_extra_real_images(tmp_path: Path) -> None:
    splits = build("iwildcam", make_iwildcam(tmp_path / "i"))
    added = training_source(splits, 8, seed=3)
    labels = Counter(added.label(index) for index in range(len(splits.train), len(added)))
    assert [labels[label] for label in range(7)] == [2, 1, 1, 1, 1, 1, 1]
    assert all(added[index].is_synthetic for index in range(14, 22))
    with pytest.raises(UserError, match=r"synthesis\.added: is 14, of which 3 are to be of class background"):
        training_source(splits, 14, seed=3)
    anyhow = training_source(build("iwildcam", tmp_path / "i", match_extra=False), 14, seed=3)
    assert len(anyhow) == 28


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
]


@pytest.mark.parametrize(("name", "file", "line", "old", "new", "message"), FAULTS)
def test_a_fault_names_file_and_line(
    tmp_path: Path, name: str, file: str, line: int, old: str, new: str, message: str
) -> None:
    root = MAKE[name](tmp_path / name)
    change(root / file, line, old, new)

    def read_everything() -> None:
        splits = build(name, root)
        training_source(splits, None, 0).label(0)
        len(splits.test)

    with pytest.raises(UserError) as caught:
        read_everything()
    assert message in str(caught.value)
    assert str(root / file) in str(caught.value)


@pytest.mark.parametrize("name", ["waterbirds", "iwildcam"])
def test_missing_and_damaged_files(tmp_path: Path, name: str) -> None:
    root = MAKE[name](tmp_path / name)
    first = root / ("a/0.png" if name == "waterbirds" else "train/0.png")
    first.write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be read as an image"):
        build(name, root).train[0]
    first.unlink()
    with pytest.raises(UserError, match=r"does not exist, but .*line 2 names it"):
        len(build(name, root).train)
    assert len(build(name, root).test) == (4 if name == "waterbirds" else len(YS)), "test needs no training image"
    (root / ("metadata.csv" if name == "waterbirds" else "train_subset.csv")).unlink()
    with pytest.raises(UserError, match="does not exist"):
        build(name, root)
    with pytest.raises(UserError, match=r"data\.root"):
        build(name, tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["waterbirds", "iwildcam"])
def test_check_data_lists_all_faults(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = MAKE[name](tmp_path / name)
    words = [f"--data.name={name}", f"--data.root={root}"]
    assert check_data(words) == 0
    assert "complete" in capsys.readouterr().out
    table = root / ("metadata.csv" if name == "waterbirds" else "test_subset.csv")
    lines = table.read_text().splitlines()
    lines[-1] += ",more"
    table.write_text("\n".join(lines) + "\n")
    (root / ("a/2.png" if name == "waterbirds" else "train/2.png")).unlink()
    change(root / "edits" / "metadata.csv", 2, ",0,", ",9,")
    (root / "edits" / "metadata.csv").write_text(
        "\n".join(row for row in (root / "edits/metadata.csv").read_text().splitlines() if not row.endswith("/2.png"))
    )
    assert check_data(words) == 2
    printed = capsys.readouterr()
    assert f"{table}, line {len(lines)}: has not as many cells" in printed.out
    assert "2.png: does not exist, but" in printed.out
    assert "line 2: label is 9" in printed.out
    assert "3 faults, listed above" in printed.err


@pytest.mark.parametrize("arm", ["guided", "real"])
@pytest.mark.parametrize("name", ["waterbirds", "iwildcam"])
def test_training(tmp_path: Path, name: str, arm: str) -> None:
    """Two steps; only edits are guided, and the real arm trains on the extra images instead."""
    own = (
        {"synthesis.name": "edited", "synthesis.added": 4, "data.options": "{}"}
        if arm == "guided"
        else {"synthesis.name": "none", "guidance.alpha": 0, "data.options": "{extra: true}"}
    )
    metrics = "[group_accuracy, macro_f1]"
    words = arguments(
        tmp_path, arm, data__name=name, data__root=MAKE[name](tmp_path / name), data__workers=0, data__batch_size=4,
        train__max_steps=2, evaluation__metrics=metrics, model__options="{}", **own,
    )  # fmt: skip
    assert main(words) == 0
    found = rows(tmp_path / arm)
    steps = [row for row in found if row["kind"] == "train"]
    assert len(steps) == 2
    assert any(row.get("loss_guidance", 0) > 0 for row in steps) == (arm == "guided")
    test = next(row for row in found if row["kind"] == "test")
    assert {"accuracy", "worst_group", "macro_f1", "macro_recall"} <= test.keys()
    assert ("adjusted_accuracy" in test) == (name == "waterbirds")
