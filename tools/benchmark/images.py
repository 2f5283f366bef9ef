"""An image folder of realistic JPEGs for benchmarks, made of photographs that installed packages hold."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from provscale.errors import UserError

HEIGHT, WIDTH, CLASSES = 375, 500, 4
QUALITY = 90


def photographs() -> list[np.ndarray]:
    """uint8 [H, W, 3], each at least HEIGHT x WIDTH. Raises UserError: a package is not installed."""
    found = []
    for package, folder in (("sklearn", "datasets/images"), ("vpython", "vpython_data")):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"benchmark: the package {package}, which holds photographs, is not installed; run `make`")
        for path in sorted((Path(spec.submodule_search_locations[0]) / folder).glob("*.jpg")):
            with Image.open(path) as image:
                if image.height >= HEIGHT and image.width >= WIDTH and "bumpmap" not in path.name:
                    found.append(np.array(image.convert("RGB")))
    return found


def make_images(root: Path, count: int, seed: int = 0) -> None:
    """Writes four splits of `count` images in the form of the data set `imagefolder`.

    train: JPEGs in folders of classes; test: the same files, listed again; edits: each with a patch painted over, and
    its source; masked: the same edits with mask files. Rows are in the order of the file names.

    Raises:
        UserError: no photographs, or the folder cannot be written to.
    """
    generator, pictures = np.random.default_rng(seed), photographs()
    rows: dict[str, list[str]] = {"train": [], "test": [], "edits": [], "masked": []}
    try:
        for split in rows:
            (root / split).mkdir(parents=True)
        for number in range(count):
            name, label = f"{number * CLASSES // count}/{number:04d}.jpg", number * CLASSES // count
            image = crop(pictures[number % len(pictures)], generator)
            edited, mask = edit(image, generator)
            (root / "train" / str(label)).mkdir(exist_ok=True)
            Image.fromarray(image).save(root / "train" / name, quality=QUALITY)
            for split in ("edits", "masked"):
                Image.fromarray(edited).save(root / split / f"{number:04d}.jpg", quality=QUALITY)
            Image.fromarray(mask).save(root / "masked" / f"{number:04d}.png")
            rows["train"].append(f"{name},{label}")
            rows["test"].append(f"../train/{name},{label}")
            rows["edits"].append(f"{number:04d}.jpg,{label},../train/{name}")
            rows["masked"].append(f"{number:04d}.jpg,{label},{number:04d}.png")
        extra = {"edits": ",source_file_name", "masked": ",mask_file_name"}
        for split, lines in rows.items():
            header = "file_name,label" + extra.get(split, "")
            (root / split / "metadata.csv").write_text("\n".join([header, *lines]) + "\n")
    except OSError as error:
        raise UserError(f"{root}: cannot be written ({error.strerror}); free space, or set TMPDIR elsewhere") from None


def crop(picture: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random part of HEIGHT x WIDTH, mirrored or not."""
    top = int(generator.integers(picture.shape[0] - HEIGHT + 1))
    left = int(generator.integers(picture.shape[1] - WIDTH + 1))
    part = picture[top : top + HEIGHT, left : left + WIDTH]
    return np.ascontiguousarray(part[:, ::-1] if generator.random() < 0.5 else part)


def edit(image: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A copy with a patch of one colour, a quarter of the image; and the mask, 255 = unedited, 0 = patch."""
    edited, mask = image.copy(), np.full(image.shape[:2], 255, dtype=np.uint8)
    top, left = int(generator.integers(HEIGHT // 2)), int(generator.integers(WIDTH // 2))
    patch = (slice(top, top + HEIGHT // 2), slice(left, left + WIDTH // 2))
    edited[patch], mask[patch] = generator.integers(0, 256, 3), 0
    return edited, mask
