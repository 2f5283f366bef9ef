"""Masks given by hand: every training image that has an object mask is guided by it, as the peers of the paper do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torchvision import tv_tensors

from provscale.sample import Item
from provscale.synthesis.base import SYNTHESES
from provscale.synthesis.edited import Edited


@SYNTHESES.register("annotated")
@dataclass
class Annotated(Edited):
    """Nothing is synthesised: hard label, M = the object mask that the data set annotates a training image with.

    So real images are guided too, as in RRR (Ross et al., IJCAI 2017), GALS (Petryk et al., CVPR 2022) and
    Model-Guidance (Rao et al., ICCV 2023). A data set's edited images join where there are any (`synthesis.added`), and
    are guided by their own object mask or else as in `edited`.

    Args:
        dilate: radius, as a share of the image's shorter side, by which every mask grows (below 0: shrinks).
    """

    uses_annotations = True

    def prepare(self, item: Item) -> Item:
        mask = item.annotations.get("object_mask")
        if mask is not None:
            item.provenance_mask, item.is_synthetic = tv_tensors.Mask(mask.to(torch.uint8)), True
        item.annotations = {}  # training reads no others, and edits need not have them
        return super().prepare(item)
