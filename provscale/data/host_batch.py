"""A batch on its way from the loader to the device: what the device can make itself is not carried there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from provscale.sample import Item, Sample, collate


@dataclass
class HostSample(Sample):
    """A batch as the loader hands it over, in host memory. `to` does the rest on the device and returns a `Sample`.

    Attributes:
        inputs: as in `Sample`; or uint8 images [B, C, H, W], a quarter of the memory, with `normalise`.
        provenance_mask: as in `Sample`; or [B, 1, ..., 1], all 1, where no item has a mask.
        normalise: what makes the network's float inputs of `inputs`; None when these are they.
    """

    normalise: Callable[[Tensor], Tensor] | None = None

    def to(self, device: torch.device | str) -> Sample:
        """The finished batch on the device; from pinned memory the host does not wait for the copies."""
        moved = super().to(device)
        entries = {entry.name: getattr(moved, entry.name) for entry in fields(Sample)}
        if self.normalise is not None:
            entries["inputs"] = self.normalise(moved.inputs)
        mask = moved.provenance_mask
        full = (*mask.shape[:2], *moved.inputs.shape[2:])
        entries["provenance_mask"] = mask if mask.shape == full else mask.expand(full).contiguous()
        return Sample(**entries)


def host_batch(
    items: Sequence[Item], indices: Sequence[int], normalise: Callable[[Tensor], Tensor] | None
) -> HostSample:
    """Stacks transformed items into a batch to be sent; as `collate`, whose errors it raises.

    Args:
        normalise: what inputs still need; it is left for later if all of them are uint8. None: nothing.
    """
    later = normalise is not None and all(item.inputs.dtype == torch.uint8 for item in items)
    if normalise is not None and not later:
        for item in items:
            item.inputs = normalise(item.inputs)
    sample = collate(items, indices, bytes_too=later, full_mask=False)
    return HostSample(**{entry.name: getattr(sample, entry.name) for entry in fields(Sample)})
