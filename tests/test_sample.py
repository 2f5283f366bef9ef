"""Item, Sample and collate: shapes and dtypes, and mistakes in an item named in one line."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

from provscale.errors import UserError
from provscale.sample import Item, Sample, collate


def item(name: str = "a.png", target: int = 0, shape: tuple[int, ...] = (3, 4, 6), **entries: Any) -> Item:
    generator = torch.Generator().manual_seed(sum(name.encode()))
    return Item(torch.randn(shape, generator=generator), target, name, **entries)


def tensors(sample: Sample) -> dict[str, Tensor]:
    found = {entry.name: getattr(sample, entry.name) for entry in fields(sample)}
    found.update(sample.annotations)
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def full_sample() -> Sample:
    items = [
        item(
            f"{number}.png",
            number,
            is_synthetic=number > 0,
            provenance_mask=tv_tensors.Mask(torch.full((1, 4, 6), number / 3)),
            valid_mask=torch.ones(3, 4, 6),
            annotations={
                "group": number,
                "box": tv_tensors.BoundingBoxes([[0.0, 1.0, 2.0, 3.0 + number]], format="XYXY", canvas_size=(4, 6)),
                "object_mask": tv_tensors.Mask(torch.ones(1, 4, 6)),
            },
        )
        for number in range(4)
    ]
    return collate(items, [10, 11, 12, 13])


# ---- collate -----------------------------------------------------------------------------------------------------
def test_collate_real_items() -> None:
    items = [item("a", 2), item("b", 0)]
    sample = collate(items, [7, 3])
    assert torch.equal(sample.inputs, torch.stack([items[0].inputs, items[1].inputs]))
    assert sample.targets.tolist() == [[2], [0]]
    assert sample.targets.dtype == torch.int64
    assert sample.mixing_weight.tolist() == [1.0, 1.0]
    assert sample.provenance_mask.shape == (2, 1, 4, 6)
    assert sample.provenance_mask.min() == 1
    assert sample.is_synthetic.tolist() == [False, False]
    assert sample.index.tolist() == [7, 3]
    assert sample.valid_mask is None
    assert sample.annotations == {}
    assert not sample.guided
    assert not sample.soft
    assert len(sample) == 2


def test_collate_everything_an_item_can_have() -> None:
    sample = full_sample()
    shapes = {name: tuple(value.shape) for name, value in tensors(sample).items()}
    assert shapes == {
        "inputs": (4, 3, 4, 6),
        "targets": (4, 1),
        "mixing_weight": (4,),
        "provenance_mask": (4, 1, 4, 6),
        "is_synthetic": (4,),
        "index": (4,),
        "valid_mask": (4, 3, 4, 6),
        "group": (4,),
        "box": (4, 4),
        "object_mask": (4, 1, 4, 6),
        "present": (4, 3),
    }
    assert all(type(value) is Tensor for value in tensors(sample).values())  # no tv_tensor left
    assert sample.guided
    assert sample.is_synthetic.tolist() == [False, True, True, True]
    torch.testing.assert_close(sample.provenance_mask[:, 0, 0, 0], torch.tensor([0, 1 / 3, 2 / 3, 1]))
    assert sample.annotations["group"].tolist() == [0, 1, 2, 3]
    assert sample.annotations["box"][2].tolist() == [0, 1, 2, 5]


def test_a_real_item_among_edited_ones_is_unedited_everywhere() -> None:
    mask = torch.zeros(1, 4, 6)
    sample = collate([item("real"), item("edit", is_synthetic=True, provenance_mask=mask)], [0, 1])
    assert sample.provenance_mask[0].min() == 1
    assert sample.provenance_mask[1].max() == 0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_masks_of_one_and_of_all_channels_meet(order: tuple[int, int]) -> None:
    one, every = torch.zeros(1, 4, 6), torch.zeros(3, 4, 6)
    one[0, 1, 2], every[2, 0, 5] = 1, 1
    items = [item("one", provenance_mask=one), item("every", provenance_mask=every)]
    sample = collate([items[place] for place in order], list(order))
    expected = [one.expand(3, 4, 6), every]
    assert sample.provenance_mask.shape == (2, 3, 4, 6)
    for row, place in enumerate(order):
        assert torch.equal(sample.provenance_mask[row], expected[place])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_item_without_valid_mask_is_valid(order: tuple[int, int]) -> None:
    """Wherever in the batch it comes: the first item decides nothing."""
    items = [item("padded", valid_mask=torch.zeros(3, 4, 6)), item("whole")]
    valid = collate([items[place] for place in order], list(order)).valid_mask
    assert valid is not None
    assert [float(valid[row].mean()) for row in range(2)] == [float(place) for place in order]


def test_float64_is_kept() -> None:
    items = [item("a"), item("b")]
    for each in items:
        each.inputs = each.inputs.double()
    sample = collate(items, [0, 1])
    assert sample.inputs.dtype == torch.float64
    assert sample.to("cpu")[:1].inputs.dtype == torch.float64
    assert Sample.real(sample.inputs, torch.tensor([0, 1])).inputs.dtype == torch.float64


def test_skeleton_items() -> None:
    """[P, F, E]: 2 persons, 5 frames, 51 elements."""
    items = [item(name, shape=(2, 5, 51), valid_mask=torch.ones(2, 5, 51)) for name in "ab"]
    sample = collate(items, [0, 1])
    assert sample.inputs.shape == (2, 2, 5, 51)
    assert sample.provenance_mask.shape == (2, 1, 5, 51)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "mask of another size": ({"provenance_mask": torch.ones(1, 4, 5)}, r"provenance mask has shape \(1, 4, 5\)"),
    "mask without channel": ({"provenance_mask": torch.ones(4, 6)}, r"provenance mask has shape \(4, 6\)"),
    "mask of two channels": ({"provenance_mask": torch.ones(2, 4, 6)}, "must be 1 or 3"),
    "mask up to 255": ({"provenance_mask": torch.full((1, 4, 6), 255.0)}, r"span \[255, 255\]; allowed is \[0, 1\]"),
    "mask below 0": ({"provenance_mask": torch.full((1, 4, 6), -0.5)}, r"span \[-0.5, -0.5\]"),
    "NaN in the mask": ({"provenance_mask": torch.full((1, 4, 6), float("nan"))}, r"span \[nan, nan\]"),
    "valid mask of another size": ({"valid_mask": torch.ones(3, 4, 5)}, r"valid mask has shape \(3, 4, 5\)"),
    "valid mask up to 2": ({"valid_mask": torch.full((3, 4, 6), 2.0)}, r"valid mask values span \[2, 2\]"),
    "another shape": ({"shape": (3, 4, 7)}, r"\(3, 4, 7\), those of good\.png have \(3, 4, 6\)"),
    "more annotations": ({"annotations": {"group": 1}}, r"has annotations \['group'\], good\.png has \[\]"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_name_the_item(what: str) -> None:
    entries, message = MISTAKES[what]
    with pytest.raises(UserError, match=message) as caught:
        collate([item("good.png"), item("bad.png", **entries)], [0, 1])
    assert str(caught.value).startswith("bad.png: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_inputs_must_be_finite(value: float) -> None:
    bad = item("bad.png")
    bad.inputs[1, 2, 3] = value
    with pytest.raises(UserError, match=r"bad\.png: the inputs contain NaN or infinity"):
        collate([item("good.png"), bad], [0, 1])


def test_inputs_must_be_floating_point() -> None:
    bad = Item(tv_tensors.Image(torch.zeros(3, 4, 6, dtype=torch.uint8)), 0, "bad.png")
    with pytest.raises(UserError, match=r"bad\.png: inputs are torch\.uint8, must be floating point"):
        collate([bad], [0])


def test_annotations_of_another_shape() -> None:
    items = [item(f"{count}.png", annotations={"box": torch.zeros(count, 4)}) for count in (1, 2)]
    with pytest.raises(UserError, match=r"2\.png: annotation 'box' has shape \(2, 4\), that of 1\.png \(1, 4\)"):
        collate(items, [0, 1])


def test_missing_annotations_are_named_too() -> None:
    with pytest.raises(UserError, match=r"bad\.png: has annotations \[\], good\.png has \['group'\]"):
        collate([item("good.png", annotations={"group": 0}), item("bad.png")], [0, 1])


# ---- Sample ------------------------------------------------------------------------------------------------------
def test_map_touches_every_tensor_and_copies() -> None:
    sample = full_sample()
    before = {name: value.clone() for name, value in tensors(sample).items()}
    doubled = sample.map(lambda tensor: tensor + tensor)
    assert doubled.guided
    for name, value in tensors(doubled).items():
        assert torch.equal(value, before[name] + before[name]), name
    for name, value in tensors(sample).items():
        assert torch.equal(value, before[name]), name


def test_to_moves_every_tensor_but_those_of_the_host() -> None:
    moved = full_sample().to("meta")
    here = {name for name, value in tensors(moved).items() if value.device.type == "cpu"}
    assert here == {"index", "present"}
    assert {value.device.type for name, value in tensors(moved).items() if name not in here} == {"meta"}
    assert len(moved) == 4
    assert moved[torch.tensor([2, 1])].index.tolist() == [12, 11]


def test_bytes_are_stacked_as_floats_are() -> None:
    """Images that lie in memory pixel by pixel, as decoders give them, and images that lie channel by channel."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(256, (4, 6, 3), generator=generator, dtype=torch.uint8).permute(2, 0, 1) for _ in range(3)]
    for images in (rows, [row.contiguous() for row in rows]):
        items = [Item(image, 0, f"{number}") for number, image in enumerate(images)]
        batch = collate(items, range(3), bytes_too=True, full_mask=False)
        assert batch.inputs.dtype == torch.uint8
        assert torch.equal(batch.inputs, torch.stack(rows))
        assert batch.provenance_mask.shape == (3, 1, 1, 1)
        assert batch.provenance_mask.min() == 1


def test_what_is_present_follows_from_the_valid_mask() -> None:
    valid = torch.zeros(3, 4, 6)
    valid[1, 2, 3] = 1
    sample = collate([item("padded", valid_mask=valid), item("whole")], [0, 1])
    assert sample.present is not None
    assert sample.present.tolist() == [[False, True, False], [True, True, True]]
    assert collate([item("whole")], [0]).present is None


@pytest.mark.parametrize("rows", [slice(1, 3), torch.tensor([3, 0, 3]), torch.tensor([False, True, True, False])])
def test_rows(rows: slice | Tensor) -> None:
    sample = full_sample()
    part = sample[rows]
    for name, value in tensors(part).items():
        assert torch.equal(value, tensors(sample)[name][rows]), name
    assert len(part) == len(sample.index[rows])


def test_without_valid_mask_and_annotations() -> None:
    sample = Sample.real(torch.zeros(3, 3, 4, 6), torch.tensor([0, 1, 2]))[1:]
    assert sample.valid_mask is None
    assert sample.annotations == {}
    assert sample.index.tolist() == [1, 2]


def test_guided_must_be_said() -> None:
    """A default would switch guidance off without a word."""
    sample = full_sample()
    entries = {name: value for name, value in tensors(sample).items() if name not in sample.annotations}
    with pytest.raises(TypeError, match="guided"):
        Sample(**entries)  # type: ignore[call-arg]
