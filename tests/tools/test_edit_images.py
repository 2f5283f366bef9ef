"""tools/edit_images.py with tiny pipelines of random weights: the table, going on where it was, attention maps."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from listed_folders import build, make_cub_classification
from PIL import Image

pytest.importorskip("diffusers", reason="needs the extra `edit`")

from tiny_pipelines import make_pipeline

from tools.attention_maps import AttentionRecorder, word_positions
from tools.edit_images import main

pytestmark = pytest.mark.slow  # diffusers and transformers take seconds to import

PROMPTS = ("a photo of {} on rocks", "{} on snow")


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pipelines")
    return {kind: make_pipeline(folder / kind, kind) for kind in ("img2img", "inpaint", "instruct")}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_cub_classification(tmp_path_factory.mktemp("data") / "CUB")
    shutil.rmtree(root / "edits")
    return root


def run(pipeline: Path, kind: str, root: Path, out: Path, *words: object, limit: int = 2) -> int:
    return main(
        [
            "--pipeline", str(pipeline), "--kind", kind, "--prompts", *PROMPTS, "--size", "32", "--steps", "2",
            "--device", "cpu", "--limit", str(limit), "--out", str(out), *map(str, words),
            "--data.name", "cub_classification", "--data.root", str(root),
        ]
    )  # fmt: skip


def table(out: Path) -> list[dict[str, str]]:
    with (out / "metadata.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def test_img2img_is_trained_on_and_goes_on_where_it_was(pipelines: dict[str, Path], images: Path) -> None:
    """Two images by two prompts; two are lost and made again, in batches of other edits, with the same noise."""
    out = images / "edits"
    words = ("--strength", 0.9, "--attention")
    assert run(pipelines["img2img"], "img2img", images, out, *words, "--batch", 4) == 0
    rows = table(out)
    assert [row["prompt"] for row in rows] == [prompt.format("albatross") for _ in range(2) for prompt in PROMPTS]
    assert [row["source_file_name"] for row in rows] == [
        f"../images/001.Albatross/train_{n // 2}.jpg" for n in range(4)
    ]
    made = [pixels(out / row["file_name"]) for row in rows]
    assert [image.shape for image in made] == [pixels(out / row["source_file_name"]).shape for row in rows]
    assert not np.array_equal(made[0], made[1]), "the prompt and its number draw something else"
    attention = [pixels(out / row["attention_file_name"]) for row in rows]
    assert [image.shape for image in attention] == [image.shape[:2] for image in made]
    assert all(image.max() > 200 > 50 > image.min() for image in attention)

    before = [(out / row["file_name"]).stat().st_mtime_ns for row in rows]
    (out / rows[1]["file_name"]).unlink()
    (out / rows[2]["attention_file_name"]).unlink()
    (out / "metadata.csv").unlink()
    assert run(pipelines["img2img"], "img2img", images, out, *words, "--batch", 1) == 0
    assert table(out) == rows
    after = [(out / row["file_name"]).stat().st_mtime_ns for row in rows]
    assert [old != new for old, new in zip(before, after, strict=True)] == [False, True, True, False]
    for row, image in zip(rows, made, strict=True):
        # Sums of another batch size: a level of rounding.
        assert np.abs(pixels(out / row["file_name"]).astype(int) - image).max() <= 2

    splits = build("cub_classification", images)
    assert splits.edits is not None
    assert len(splits.edits) == 4
    shutil.rmtree(out)


def test_inpainting_keeps_its_mask_as_provenance(pipelines: dict[str, Path], images: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks" / "001.Albatross"
    masks.mkdir(parents=True)
    for number in range(2):
        with Image.open(images / f"images/001.Albatross/train_{number}.jpg") as source:
            values = np.zeros((source.height, source.width), dtype=np.uint8)
        values[10:30, 10:30] = 200
        Image.fromarray(values).save(masks / f"train_{number}.png")
    out = tmp_path / "edits"
    assert run(pipelines["inpaint"], "inpaint", images, out, "--masks", tmp_path / "masks") == 0
    for row in table(out):
        mask = pixels(out / row["mask_file_name"])
        assert mask.shape == pixels(out / row["file_name"]).shape[:2]
        assert (mask == 255).sum() == 400
    Image.fromarray(values[:-1]).save(masks / "train_1.png")
    assert run(pipelines["inpaint"], "inpaint", images, tmp_path / "other", "--masks", tmp_path / "masks") == 2


def test_instructions_and_mistakes(
    pipelines: dict[str, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, pipeline = tmp_path / "edits", pipelines["instruct"]
    assert run(pipeline, "instruct", images, out, "--attention", limit=1) == 0
    assert len(table(out)) == 2
    for words, message in (
        (("--seed", 1), "were made with seed 0, not 1; give another --out"),
        (("--size", 30), "--size: is 30, must be a multiple of 8"),
        (("--masks", tmp_path), "--masks: is for --kind inpaint"),
        (("--strength", 0), "--strength: is 0.0, must be above 0"),
        (("--prompts", "{0} {1}"), "has braces that are not {}"),
        (("--pipeline", tmp_path), "cannot be loaded as instruct"),
    ):
        assert run(pipeline, "instruct", images, out, *words, limit=1) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_attention_is_the_networks_own(pipelines: dict[str, Path]) -> None:
    """Recording changes no bit of the output; the tokens' shares sum to 1; the second half of a batch is recorded, as
    attention of a batch without guidance shows."""
    import diffusers

    pipeline = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(pipelines["img2img"])
    unet, generator = pipeline.unet, torch.Generator().manual_seed(1)
    latents = torch.randn(4, 4, 4, 4, generator=generator)
    context = torch.randn(4, 5, 16, generator=generator)
    with torch.no_grad():
        plain = unet(latents, 7, context).sample
        with AttentionRecorder(unet, 2) as recorder:
            assert torch.equal(unet(latents, 7, context).sample, plain)
        with AttentionRecorder(unet, 2) as alone:
            unet(latents[2:], 7, context[2:])
        assert torch.equal(unet(latents, 7, context).sample, plain)
    maps = recorder.maps()
    assert maps.shape == (2, 5, 32, 32)
    torch.testing.assert_close(maps.sum(dim=1), torch.ones(2, 32, 32))
    torch.testing.assert_close(maps, alone.maps())
    assert recorder.count == alone.count > 0
    assert word_positions(pipeline.tokenizer, "a photo of albatross on rocks", "albatross") == [4]
    assert word_positions(pipeline.tokenizer, "a photo of rocks", "albatross") == []
