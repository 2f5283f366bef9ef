"""tools/build_edit_manifest.py: from ALIA's folders to a table that training reads, without a guess."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cub_folder import CLASSES
from listed_folders import build, make_cub_classification
from PIL import Image

from tools.build_edit_manifest import main
from tools.source_match import Match, blocks, match

PROMPTS = ("a_photo_of_a_{}_bird_on_rocks", "a_photo_of_a_{}_bird_in_the_water")
Made = tuple[Path, Path]


def edit_path(tree: Path, prompt: str, source: int) -> Path:
    return tree / prompt / "strength-0.6_guidance-7.5" / CLASSES[source // 3] / f"{source}-0.png"


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """CUB without edits, and a tree with an edit of each of the 9 training images for both prompts: the lower right
    corner black, the size cut down to multiples of 8 as diffusion pipelines do."""
    root = make_cub_classification(tmp_path / "CUB")
    shutil.rmtree(root / "edits")
    tree = tmp_path / "edited"
    for prompt in PROMPTS:
        for source in range(9):
            image = Image.open(root / "images" / CLASSES[source // 3] / f"train_{source % 3}.jpg")
            pixels = np.array(image.resize((image.width // 8 * 8, image.height // 8 * 8)))
            pixels[-10:, -10:] = 0
            path = edit_path(tree, prompt, source)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    samples = edit_path(tree, PROMPTS[0], 0).parent / "samples"
    samples.mkdir()
    shutil.copy(edit_path(tree, PROMPTS[0], 0), samples / "0.png")
    return root, tree


def run(made: Made, *words: object) -> int:
    root, tree = made
    words = words if "--other-size" in words else (*words, "--other-size", "resize")
    data = ["--data.name", "cub_classification", "--data.root", str(root)]
    return main([str(tree), *map(str, words), "--workers", "1", *data])


def table(root: Path, name: str = "metadata") -> list[dict[str, str]]:
    with (root / "edits" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_edit_gets_its_source_and_the_size_of_it(made: Made) -> None:
    root, _ = made
    assert run(made, "--per-source", 0) == 0
    rows = table(root)
    sources = [f"../images/{CLASSES[n // 3]}/train_{n % 3}.jpg" for n in range(9)]
    # ALIA's order: by folder as text, so "in the water" comes first.
    assert [row["source_file_name"] for row in rows] == sources * 2
    assert [int(row["label"]) for row in rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2] * 2
    assert {row["prompt"] for row in rows[:9]} == {"a photo of a {} bird in the water"}
    assert {(row["strength"], row["guidance"]) for row in rows} == {("0.6", "7.5")}
    assert not (root / "edits" / "unverified.csv").exists()
    # 40 x 40 (class 2, or 0 and 1 shifted) is a multiple of 8 already; other sides are not, and are copied.
    for row in rows:
        with (
            Image.open(root / "edits" / row["file_name"]) as edit,
            Image.open(root / "edits" / row["source_file_name"]) as source,
        ):
            assert edit.size == source.size
            assert ("resized" in row["file_name"]) == any(side % 8 for side in source.size)
    splits = build("cub_classification", root)
    assert splits.edits is not None
    assert len(splits.edits) == 18
    assert splits.edits[17].source is not None


def test_what_is_not_certain_is_listed_and_left_out(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    """An edit of another image than its index says, one of no training image, one in another class's folder, one that
    has nothing in common with its source."""
    root, tree = made
    one = [edit_path(tree, PROMPTS[0], source) for source in range(9)]
    shutil.copy(one[1], one[2])
    shutil.move(one[3], one[3].with_name("77-0.png"))
    shutil.move(one[4], one[0].with_name("4-0.png"))
    noise = np.random.default_rng(5).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(one[8])
    assert run(made, "--per-source", 0) == 0
    assert "14 with a verified source, 4 not certain" in capsys.readouterr().out
    rows = table(root, "unverified")
    reasons = {row["index"]: row["reason"] for row in rows}
    assert reasons.keys() == {"2", "77", "4", "8"}
    assert reasons["2"] == "another image of the class is more similar"
    assert reasons["77"] == "there are only 9 training images"
    assert reasons["4"] == "the source has another class"
    assert reasons["8"] in ("less similar than 0.5", "another image of the class is more similar")
    (confused,) = [row for row in rows if row["index"] == "2"]
    assert confused["other"].endswith("train_1.jpg")
    assert Counter(row["source_file_name"][-11:-4] for row in table(root))["train_2"] == 4
    assert len(table(root)) == 14


def test_edits_are_drawn_by_seed_and_matched_to_the_extra_images(made: Made) -> None:
    """5 extra images of each class, so 2 of 6 edits for each; no source twice."""
    root, _ = made
    drawn = []
    for seed in (0, 0, 1):
        shutil.rmtree(root / "edits", ignore_errors=True)
        assert run(made, "--number", 6, "--seed", seed) == 0
        rows = table(root)
        assert Counter(row["label"] for row in rows) == {"0": 2, "1": 2, "2": 2}
        assert len({row["source_file_name"] for row in rows}) == 6
        drawn.append([(row["source_file_name"], row["prompt"]) for row in rows])
    assert drawn[0] == drawn[1] != drawn[2]


def test_alias_filter(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Off topic goes; so does what a classifier is surer of than its threshold, right or wrong."""
    root, tree = made
    lines = ["file_name,semantic,prediction,confidence,threshold"]
    for prompt in PROMPTS:
        for source in range(9):
            semantic, prediction, confidence = 1, source // 3, 0.5
            if prompt == PROMPTS[0]:
                semantic = int(source != 0)
                prediction = (prediction + (source == 1)) % 3
                confidence = 0.9 if source in (1, 2) else 0.8 if source == 3 else 0.5
            path = edit_path(tree, prompt, source).relative_to(tree)
            lines.append(f"{path},{semantic},{prediction},{confidence},0.8")
    (tree / "scores.csv").write_text("\n".join(lines) + "\n")
    assert run(made, "--per-source", 0, "--scores", tree / "scores.csv") == 0
    assert "15 kept" in (printed := capsys.readouterr().out)
    assert "1 off topic, 1 too easy, 1 mislabelled" in printed
    rocks = [row for row in table(root) if "rocks" in row["prompt"]]
    assert [row["source_file_name"][-11:-4] for row in rocks] == ["train_0", "train_1", "train_2"] * 2
    shutil.rmtree(root / "edits")
    np.save(tmp_path / "kept.npy", np.array([0, 17]))
    assert run(made, "--per-source", 0, "--kept", tmp_path / "kept.npy") == 0
    assert [(row["label"], row["prompt"][-5:]) for row in table(root)] == [("0", "water"), ("2", "rocks")]


def test_another_order_of_the_training_images(made: Made, tmp_path: Path) -> None:
    """ALIA's own order, read from a file: here the images of the first class backwards."""
    root, tree = made
    order = [*range(2, -1, -1), *range(3, 9)]
    lines = [f"images/{CLASSES[n // 3]}/train_{n % 3}.jpg" for n in order]
    (tmp_path / "order.txt").write_text("\n".join(lines))
    for prompt in PROMPTS:
        first, last = edit_path(tree, prompt, 0), edit_path(tree, prompt, 2)
        first.rename(first.with_name("x"))
        last.rename(first)
        first.with_name("x").rename(last)
    assert run(made, "--order", tmp_path / "order.txt") == 0
    assert len(table(root)) == 9
    assert not (root / "edits" / "unverified.csv").exists()


def break_scores(root: Path, tree: Path) -> list[object]:
    (tree / "scores.csv").write_text("file_name,semantic,prediction,confidence,threshold\nx.png,yes,1,1,1\n")
    return ["--scores", tree / "scores.csv"]


def missing_score(root: Path, tree: Path) -> list[object]:
    (tree / "scores.csv").write_text("file_name,semantic,prediction,confidence,threshold\nx.png,1,1,1,1\n")
    return ["--scores", tree / "scores.csv"]


def kept(root: Path, tree: Path) -> list[object]:
    np.save(tree / "kept.npy", np.array([18]))
    return ["--kept", tree / "kept.npy"]


def pickled(root: Path, tree: Path) -> list[object]:
    np.save(tree / "kept.npy", np.array([print], dtype=object), allow_pickle=True)
    return ["--kept", tree / "kept.npy"]


def other_class(root: Path, tree: Path) -> list[object]:
    folder = edit_path(tree, PROMPTS[0], 0).parent
    folder.rename(folder.with_name("004.Crow"))
    return []


def no_image(root: Path, tree: Path) -> list[object]:
    edit_path(tree, PROMPTS[0], 0).write_bytes(b"no image")
    return []


def there_already(root: Path, tree: Path) -> list[object]:
    (root / "edits").mkdir()
    (root / "edits" / "metadata.csv").write_text("file_name,label\n")
    return []


def wrong_order(root: Path, tree: Path) -> list[object]:
    (tree / "order.txt").write_text("images/nothing.jpg\n")
    return ["--order", tree / "order.txt"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root, tree: ["--number", 10], "--number: is 10, but there are only 9 verified edits"),
        (lambda root, tree: ["--other-size", "refuse"], "--other-size resize writes copies"),
        (lambda root, tree: [tree / PROMPTS[0]], "is given twice"),
        (lambda root, tree: [root / "images"], "holds no strength-S_guidance-G"),
        (lambda root, tree: ["--least", 1.5], "no edit has a certain source"),
        (break_scores, "scores.csv, line 2: invalid literal"), (missing_score, "scores.csv: has no row for"),
        (kept, "names edit 18, but the trees hold 18"), (pickled, "cannot be read as a NumPy array"),
        (other_class, "004.Crow: is no class"), (no_image, "0-0.png: cannot be read as an image"),
        (there_already, "metadata.csv: exists already"), (wrong_order, "order.txt, line 1: images/nothing.jpg is no"),
    ],
)  # fmt: skip
def test_mistakes_leave_nothing_behind(
    made: Made, prepare: Callable[[Path, Path], list[object]], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root, tree = made
    words = prepare(root, tree)
    before = sorted(root.rglob("*"))
    assert run(made, *words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("provscale: ")]
    assert message in line
    assert sorted(root.rglob("*")) == before


def test_similarity_is_the_correlation_of_the_best_blocks() -> None:
    """Against NumPy's correlation of the blocks of images that are small already; a flat block is like nothing."""
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[0, :, 8:16, 16:24] = 9
    images[1, :, 40:, 40:] = images[0, :, 40:, 40:]
    looks = np.stack([blocks(image) for image in images])
    gray = images.double().mean(dim=1).numpy()
    expected = []
    for row in range(8):
        for column in range(8):
            place = np.s_[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            flat = (row, column) == (1, 2)
            expected.append(0.0 if flat else np.corrcoef(gray[0][place].ravel(), gray[2][place].ravel())[0, 1])
    found = match(looks[0], 2, looks[1:].repeat(2, axis=0)[1:])  # images 1, 2, 2: the last is the source
    assert found.similarity == pytest.approx(np.mean(sorted(expected)[-8:]), abs=1e-5)
    assert (found.other, found.other_similarity) == (0, pytest.approx(1, abs=1e-5))
    assert not looks[0, 10].any()
    assert found.doubt(0.1, 0.1) == "another image of the class is more similar"
    assert Match(0.8, 3, 0.79).doubt(0.5, 0.02) == "another image of the class is as similar, within 0.02"
    assert Match(0.4, 3, 0.1).doubt(0.5, 0.02) == "less similar than 0.5"
    assert Match(0.8, 3, 0.7).doubt(0.5, 0.02) == ""
