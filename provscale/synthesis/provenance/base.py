"""From an edited image and its source to a provenance mask: the options, the registry, and what all methods share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from provscale.errors import UserError
from provscale.registry import Registry

Pixels = NDArray[np.uint8]
"""An RGB image [H, W, 3], or a mask [H, W] in {0, 1}."""

Values = NDArray[np.floating[Any]]
"""Numbers of a map [H, W] or an image [H, W, 3], float32."""

Normalisation = Literal["half", "imagenet"]


@dataclass
class ProvenanceOptions:
    """How the masks of edited images are made.

    Args:
        provenance: otsu (the paper's: Otsu's threshold on the difference), refined (colour and structure compared,
            after registration) or segmented (refined, helped by a salient-object network).
        space: colour space of otsu's difference: rgb, the largest difference of a channel; lab, the perceptual
            distance CIE76.
        smoothing: of otsu: standard deviation, in pixels, of a Gaussian over the difference; 0 is the paper's form.
        weights: of segmented: an ONNX file of a salient-object network.
        weights_side: of segmented: side of the network's square input in pixels; null = as the ONNX file says.
        weights_normalisation: of segmented: half, values in [-0.5, 0.5] (ISNet), or imagenet, ImageNet's mean and
            standard deviation (U2-Net).
        source_size: what is done with a source of another size than its edit: refuse it, or resize it to the edit's,
            whatever the proportions (right where the generator was given the whole image, squashed).
    """

    provenance: str = "otsu"
    space: Literal["rgb", "lab"] = "rgb"
    smoothing: float = 0.0
    weights: str | None = None
    weights_side: int | None = None
    weights_normalisation: Normalisation = "half"
    source_size: Literal["refuse", "resize"] = "refuse"

    def __post_init__(self) -> None:
        key = "synthesis.options"
        PROVENANCE[self.provenance]
        if not self.smoothing >= 0:
            raise UserError(f"{key}.smoothing: is {self.smoothing}, must be 0 or more")
        if self.weights_side is not None and self.weights_side < 1:
            raise UserError(f"{key}.weights_side: is {self.weights_side}, must be at least 1 pixel")
        for name, method in (("space", "otsu"), ("smoothing", "otsu"), ("weights", "segmented")):
            if self.provenance != method and getattr(self, name) != getattr(ProvenanceOptions, name):
                raise UserError(
                    f"{key}.{name}: is {getattr(self, name)!r}, which only {method} uses, while {key}.provenance is "
                    f"{self.provenance}; remove one of them"
                )
        if self.provenance == "segmented" and not self.weights:
            raise UserError(
                f"{key}.weights: is not set, but segmented needs a salient-object network; give an ONNX file, or use "
                f"{key}.provenance refined"
            )

    @property
    def key(self) -> str:
        """A folder name for masks made so: equal for equal masks, e.g. `otsu-lab`."""
        parts = [self.provenance]
        if self.provenance == "otsu":
            parts += [self.space] * (self.space != "rgb") + [f"smoothing{self.smoothing:g}"] * (self.smoothing > 0)
        if self.weights:
            parts.append(self.weights.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".onnx"))
        return "-".join(parts)


Method = Callable[[Pixels, Pixels, ProvenanceOptions], Pixels]
PROVENANCE: Registry[Method] = Registry("synthesis.options.provenance")
"""Methods by name: source and edited image, uint8 [H, W, 3] of one size -> mask uint8 [H, W], 1 = unedited."""


def make_mask(source: Tensor, edited: Tensor, options: ProvenanceOptions) -> tv_tensors.Mask:
    """The provenance mask of an edited image.

    Args:
        source: image before the edit, [3, H, W], uint8 in [0, 255] or float in [0, 1].
        edited: image after the edit, likewise.

    Returns:
        uint8 mask [1, H, W], 1 = unedited, of the size of `edited`.

    Raises:
        UserError: the images differ in size and `options.source_size` is refuse, or `options.weights` cannot be used.
    """
    if source.shape != edited.shape:
        if options.source_size == "refuse" or source.shape[0] != edited.shape[0]:
            raise UserError(
                f"edited image has shape {tuple(edited.shape)}, its source {tuple(source.shape)}; both must have the "
                "same size: resize one of them, or set synthesis.options.source_size to resize"
            )
        source = functional.resize(source, list(edited.shape[1:]), antialias=True)
    mask = PROVENANCE[options.provenance](as_pixels(source), as_pixels(edited), options)
    return tv_tensors.Mask(torch.from_numpy(mask)[None])


def as_pixels(image: Tensor) -> Pixels:
    """uint8 [H, W, 3] of an image [3, H, W], uint8 or float in [0, 1]."""
    whole = functional.to_dtype(image, torch.uint8, scale=True).as_subclass(Tensor)
    return np.ascontiguousarray(whole.permute(1, 2, 0).numpy())


def below_otsu(values: Values) -> Pixels:
    """Mask uint8 [H, W]: 1 where `values` (0 or more) lie at or below Otsu's threshold.

    The threshold is found in 256 steps up to the largest value, or up to 1, below which rounding alone would be split.
    """
    steps = (values.clip(min=0) * (255 / max(float(values.max()), 1.0))).round().astype(np.uint8)
    _, mask = cv2.threshold(steps, 0, 1, cv2.THRESH_BINARY_INV | cv2.THRESH_OTSU)
    return np.asarray(mask, dtype=np.uint8)


def lab_distance(first: Values, second: Values) -> Values:
    """Perceptual colour distance CIE76 [H, W] of RGB images [H, W, 3] in [0, 255]; about 2 is just noticeable."""
    lab = [cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2Lab) for image in (first, second)]
    return np.linalg.norm(lab[0] - lab[1], axis=2).astype(np.float32)


def dilated(mask: Tensor, share: float) -> Tensor:
    """The mask grown by a disc: a mask must enclose the evidence, not follow its edge.

    Args:
        mask: [1, H, W], 1 = unedited.
        share: radius as a share of the shorter side, rounded to pixels; below 0 the mask shrinks.
    """
    radius = round(abs(share) * min(mask.shape[1:]))
    if radius == 0:
        return mask
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    change = cv2.dilate if share > 0 else cv2.erode
    changed = change(mask[0].as_subclass(Tensor).numpy(), disc)
    return tv_tensors.Mask(torch.from_numpy(np.asarray(changed))[None])


def one_value(mask: Tensor) -> str | None:
    """What a mask of one value says ("edited" or "unedited" everywhere); None for any other mask."""
    low, high = float(mask.min()), float(mask.max())
    if low >= 1:
        return "unedited"
    return "edited" if high <= 0 else None
