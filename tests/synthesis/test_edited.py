"""Edited images: where the mask comes from, and what is refused."""

from __future__ import annotations

import pytest
import torch
from test_synthesis import KEY, photographs
from torch import Tensor
from torchvision import tv_tensors

from provscale.errors import UserError
from provscale.sample import Item
from provscale.synthesis import Edited
from provscale.synthesis.provenance import ProvenanceOptions, make_mask


def edited_item() -> tuple[Item, Tensor]:
    """An edit whose background changed by 80 levels, and where it did not change."""
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(0, 100, (3, 16, 16), generator=generator, dtype=torch.uint8)
    unedited = torch.zeros(1, 16, 16, dtype=torch.uint8)
    unedited[:, 4:12, 5:11] = 1
    edited = torch.where(unedited.bool(), source, source + 80)
    return Item(tv_tensors.Image(edited), 1, "edit.png", is_synthetic=True, source=tv_tensors.Image(source)), unedited


def test_edited_derives_the_mask_from_the_difference() -> None:
    item, unedited = edited_item()
    mask = Edited().prepare(item).provenance_mask
    assert isinstance(mask, tv_tensors.Mask)
    assert torch.equal(mask, unedited)


def test_edited_smooths_if_asked() -> None:
    item, _ = edited_item()
    assert isinstance(item.source, Tensor)
    expected = make_mask(item.source, item.inputs, ProvenanceOptions(smoothing=2.0))
    plain = make_mask(item.source, item.inputs, ProvenanceOptions())
    assert not torch.equal(plain, expected)
    assert torch.equal(Edited(smoothing=2.0).prepare(item).provenance_mask, expected)


def test_edited_keeps_a_given_mask() -> None:
    item, _ = edited_item()
    item.provenance_mask = given = tv_tensors.Mask(torch.eye(16)[None])
    assert Edited().prepare(item).provenance_mask is given


def test_edited_leaves_real_items_alone() -> None:
    item = Item(tv_tensors.Image(torch.zeros(3, 4, 4, dtype=torch.uint8)), 0, "real.png")
    assert Edited().prepare(item).provenance_mask is None


def test_edited_needs_mask_or_source() -> None:
    item, _ = edited_item()
    item.source = None
    with pytest.raises(UserError, match=r"edit\.png: an edited image needs a mask or its source"):
        Edited().prepare(item)


def test_edited_names_the_file_whose_source_differs_in_size() -> None:
    item, _ = edited_item()
    item.source = tv_tensors.Image(item.source[:, :15])  # type: ignore[index]
    with pytest.raises(UserError, match=r"edit\.png: edited image has shape \(3, 16, 16\).*\(3, 15, 16\)") as caught:
        Edited().prepare(item)
    assert "\n" not in str(caught.value)


def test_edited_uses_the_method_asked_for() -> None:
    item, _ = edited_item()
    assert isinstance(item.source, Tensor)
    expected = make_mask(item.source, item.inputs, ProvenanceOptions(provenance="refined"))
    assert torch.equal(Edited(provenance="refined").prepare(item).provenance_mask, expected)


def test_edited_opens_a_source_only_if_it_needs_it() -> None:
    item, unedited = edited_item()
    source, opened = item.source, []
    assert isinstance(source, Tensor)
    item.source = lambda: opened.append(1) or source  # type: ignore[func-returns-value, return-value]
    assert torch.equal(Edited().prepare(item).provenance_mask, unedited)
    Edited().prepare(item)  # has a mask now
    assert opened == [1]


def test_edited_dilates_every_mask() -> None:
    item, _ = edited_item()
    item.provenance_mask = tv_tensors.Mask(torch.zeros(1, 16, 16))
    item.provenance_mask[0, 8, 8] = 1
    mask = Edited(dilate=0.125).prepare(item).provenance_mask  # a radius of 2 pixels
    assert mask is not None
    disc = [(y, x) for y in range(16) for x in range(16) if abs(y - 8) <= 2 and abs(x - 8) <= 2]
    assert {(y, x) for _, y, x in mask.nonzero().tolist()} <= set(disc)
    assert all(mask[0, y, x] == 1 for y, x in ((6, 8), (10, 8), (8, 6), (8, 10), (7, 7), (9, 9)))
    assert mask.sum() > 9


@pytest.mark.parametrize(("value", "word"), [(0.0, "edited"), (1.0, "unedited")])
def test_a_mask_of_one_value_is_reported_once_and_the_sample_unguided(
    value: float, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    synthesis = Edited()
    for _ in range(2):
        item, _ = edited_item()
        item.provenance_mask = tv_tensors.Mask(torch.full((1, 16, 16), value))
        prepared = synthesis.prepare(item)
        assert not prepared.is_synthetic
        assert prepared.provenance_mask is None
    assert capsys.readouterr().err.count(f"edit.png: its provenance mask says {word} everywhere") == 1


def test_edited_leaves_batches_alone() -> None:
    sample = photographs(4)
    assert Edited()(sample, None, KEY) is sample
