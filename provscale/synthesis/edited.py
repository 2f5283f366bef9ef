"""Images edited by a generator (ALIA): provenance from what differs between them and their sources."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from provscale.errors import UserError
from provscale.sample import Item
from provscale.synthesis.base import SYNTHESES, Synthesis
from provscale.synthesis.provenance import ProvenanceOptions, dilated, make_mask, one_value, read_mask_file


@SYNTHESES.register("edited")
@dataclass
class Edited(ProvenanceOptions, Synthesis):
    """Adds a data set's edited images, hard label, M = 1 where the source was not edited.

    A mask that comes with the data set is used as it is. Otherwise it is made by `provenance`, or read from the file
    that tools/make_provenance_masks.py made. A mask of one value says nothing about where the object is: such a
    sample is reported, and trained on without guidance.

    Args:
        dilate: part of making a mask, for it must enclose the evidence: radius, as a share of the image's shorter side
            as it is on file, by which every edit's mask grows (below 0: shrinks). The ablation is another key,
            `guidance.dilation`: percent of the area, of the mask as the network gets it, for any synthesis.
    """

    dilate: float = 0.0
    reported: set[str] = field(default_factory=set, init=False, repr=False)
    uses_edits = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 <= self.dilate <= 1:
            raise UserError(f"synthesis.options.dilate: is {self.dilate}, must be a share of the image's side, -1 to 1")

    def prepare(self, item: Item) -> Item:
        if not item.is_synthetic:
            return item
        mask = dilated(self.undilated_mask(item), self.dilate)
        everywhere = one_value(mask)
        if everywhere:
            item.provenance_mask, item.is_synthetic = None, False
            if item.name not in self.reported:
                self.reported.add(item.name)
                print(
                    f"provscale: {item.name}: its provenance mask says {everywhere} everywhere, so it is trained on "
                    "without guidance",
                    file=sys.stderr,
                )
        else:
            item.provenance_mask = mask
        return item

    def undilated_mask(self, item: Item) -> Tensor:
        """The mask of an edited image: its own, the one on file, or a new one."""
        if item.provenance_mask is not None:
            return item.provenance_mask
        on_file = read_mask_file(Path(item.name), self.key)
        if on_file is not None:
            return on_file
        if item.source is None:
            raise UserError(f"{item.name}: an edited image needs a mask or its source image; add one of them")
        try:
            return make_mask(item.source() if callable(item.source) else item.source, item.inputs, self)
        except UserError as error:
            raise UserError(f"{item.name}: {error}") from None
