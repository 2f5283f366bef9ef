"""What is left to the device gives the same numbers, to the last bit, as doing everything item by item."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from provscale.data.host_batch import HostSample
from provscale.data.images.folder import IMAGENET_MEAN, IMAGENET_STD
from provscale.data.loader import LoadedItems, make_loader
from provscale.data.transforms import ItemTransform
from provscale.errors import UserError
from provscale.sample import Item, Sample, collate
from provscale.synthesis import Synthesis

CROP = v2.Compose([v2.RandomResizedCrop([16, 16], antialias=True), v2.RandomHorizontalFlip()])
TRANSFORM = ItemTransform(CROP, IMAGENET_MEAN, IMAGENET_STD)


class Images:
    """8 images of 20 x 24 pixels; `masked` ones have a provenance mask, `floats` are float32 in [0, 1]."""

    def __init__(self, masked: tuple[int, ...] = (), floats: tuple[int, ...] = (), in_pixels: bool = True) -> None:
        self.masked, self.floats, self.in_pixels = masked, floats, in_pixels

    def __len__(self) -> int:
        return 8

    def label(self, index: int) -> int:
        return index % 3

    def __getitem__(self, index: int) -> Item:
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(256, (20, 24, 3), generator=generator, dtype=torch.uint8).permute(2, 0, 1)
        if not self.in_pixels:
            image = image.contiguous()
        item = Item(tv_tensors.Image(image / 255 if index in self.floats else image), index % 3, str(index))
        if index in self.masked:
            item.is_synthetic = True
            item.provenance_mask = tv_tensors.Mask(torch.randint(2, (1, 20, 24), generator=generator))
        return item


def items(source: Images, transform: Any = TRANSFORM) -> LoadedItems:
    return LoadedItems(source, Synthesis().prepare, transform, 3, 0)


def load(source: Images, workers: int = 0) -> list[HostSample]:
    keys = [[(1, index) for index in (3, 0, 5)], [(1, index) for index in (7, 1, 2, 4)]]
    return list(make_loader(items(source), keys, workers, False))


def one_by_one(source: Images) -> list[Sample]:
    """The same batches from whole items: crop, flip, torchvision's own conversion and normalisation, then `collate`."""

    def whole(item: Item) -> Item:
        finish = v2.Compose([v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
                             v2.Normalize(list(IMAGENET_MEAN), list(IMAGENET_STD))])  # fmt: skip
        moved = finish(CROP({"inputs": item.inputs, "mask": item.provenance_mask}))
        item.inputs = moved["inputs"].as_subclass(Tensor)
        item.provenance_mask = None if moved["mask"] is None else moved["mask"].as_subclass(Tensor).float()
        return item

    plain = items(source, whole)
    return [collate([plain[1, index][1] for index in part], part) for part in ((3, 0, 5), (7, 1, 2, 4))]


SOURCES = {
    "images": Images(),
    "channel by channel": Images(in_pixels=False),
    "some edited": Images(masked=(0, 7)),
    "floats": Images(floats=tuple(range(8))),
    "some floats": Images(masked=(3,), floats=(0, 1)),
}


@pytest.mark.parametrize("name", SOURCES)
def test_batches_are_those_of_whole_items(name: str) -> None:
    for loaded, expected in zip(load(SOURCES[name]), one_by_one(SOURCES[name]), strict=True):
        found = loaded.to("cpu")
        assert type(found) is Sample
        assert found.inputs.is_contiguous()
        assert found.provenance_mask.is_contiguous()
        for field in ("inputs", "targets", "mixing_weight", "provenance_mask", "is_synthetic", "index"):
            mine, theirs = getattr(found, field), getattr(expected, field)
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape), field
            assert torch.equal(mine, theirs), field
        assert found.guided == expected.guided


def test_a_transform_in_one_go_is_its_two_parts() -> None:
    torch.manual_seed(3)
    whole = TRANSFORM(Images()[0])
    torch.manual_seed(3)
    parts = TRANSFORM.move(Images()[0])
    assert parts.inputs.dtype == torch.uint8
    assert torch.equal(whole.inputs, TRANSFORM.normalise(parts.inputs))


def test_normalising_leaves_its_input_alone() -> None:
    for images in (torch.rand(2, 3, 4, 4), torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)):
        before = images.clone()
        TRANSFORM.normalise(images)
        assert torch.equal(images, before)


@pytest.mark.parametrize("workers", [0, 1])
def test_bytes_travel_and_masks_of_ones_do_not(workers: int) -> None:
    """224 kB of image and 200 kB of mask per sample would be floats; a batch of real images is its bytes."""
    first, second = load(Images(masked=(7,)), workers)
    assert first.inputs.dtype == torch.uint8
    assert first.provenance_mask.shape == (3, 1, 1, 1)
    assert second.provenance_mask.shape == (4, 1, 16, 16)
    carried = copy.copy(first)
    carried.normalise = None
    assert len(pickle.dumps(carried)) < 3 * 3 * 16 * 16 + 4000


def test_bytes_that_nothing_would_normalise_are_refused() -> None:
    """A transform of one's own that forgets the conversion."""
    forgetful = items(Images(), lambda item: item)
    with pytest.raises(UserError, match=r"0: inputs are torch\.uint8, must be floating point"):
        list(make_loader(forgetful, [[(0, 0)]], 0, False))


class Brightened(ItemTransform):
    """A transform of one's own that adds to what the whole of `ItemTransform` gives."""

    def __call__(self, item: Item) -> Item:
        item = super().__call__(item)
        item.inputs = item.inputs + 1
        return item


def test_a_transform_that_changes_the_whole_is_called_as_a_whole() -> None:
    plain, brightened = (
        next(make_loader(items(Images(), kind(CROP)), [[(0, 2), (0, 5)]], 0, False)).to("cpu")
        for kind in (ItemTransform, Brightened)
    )
    assert torch.equal(brightened.inputs, plain.inputs + 1)
