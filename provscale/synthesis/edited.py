"""Images edited by a generator (ALIA): provenance from the difference to their source."""

from __future__ import annotations

from dataclasses import dataclass

from torchvision import tv_tensors

from provscale.errors import UserError
from provscale.sample import Item
from provscale.synthesis.base import SYNTHESES, Synthesis
from provscale.synthesis.difference import difference_mask


@SYNTHESES.register("edited")
@dataclass
class Edited(Synthesis):
    """Adds a data set's edited images, hard label, M = 1 where the source was not edited.

    A mask that comes with the data set is used as it is; otherwise it is the Otsu-binarised difference of source
    and edited image (supplement, section 6).

    Args:
        smoothing: standard deviation, in pixels, of a Gaussian over the difference; 0 is the paper's plain form.
    """

    smoothing: float = 0.0
    uses_edits = True

    def __post_init__(self) -> None:
        if not self.smoothing >= 0:
            raise UserError(f"synthesis.options.smoothing: is {self.smoothing}, must be 0 or more")

    def prepare(self, item: Item) -> Item:
        if item.is_synthetic and item.provenance_mask is None:
            if item.source is None:
                raise UserError(f"{item.name}: an edited image needs a mask or its source image; add one of them")
            try:
                mask = difference_mask(item.source, item.inputs, self.smoothing)
            except UserError as error:
                raise UserError(f"{item.name}: {error}") from None
            item.provenance_mask = tv_tensors.Mask(mask)
        return item
