"""The one sample type, from the loader to the loss.

    data set -> Item -> (transform) -> collate -> Sample -> synthesis -> Sample -> guidance, evaluation

Shapes: B samples, C channels, H x W pixels; skeleton sequences have P persons x F frames x E elements instead of
C x H x W. Nothing here, in the loss or in the step knows which of the two it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from provscale.errors import UserError


@dataclass
class Item:
    """What a data set returns for one index, before transforms.

    Attributes:
        inputs: image as `tv_tensors.Image` uint8 [C, H, W], or any float tensor of the network's input shape.
        target: class, 0-based.
        name: file name or other identity, shown in errors and reports.
        is_synthetic: True for an edited image, whose provenance is known.
        source: the unedited image of an edited one, as `inputs`; or what opens it, for it is needed only where there
            is no mask yet.
        provenance_mask: `tv_tensors.Mask` [1, H, W], 1 = unedited element; None = derived from `source`.
        valid_mask: float tensor of the shape of `inputs`, 0 = padding; None = everything is valid.
        annotations: what only evaluation needs, e.g. `group` (int), `box` (tv_tensors.BoundingBoxes, xyxy),
            `object_mask` (tv_tensors.Mask [1, H, W]).
    """

    inputs: Tensor
    target: int
    name: str
    is_synthetic: bool = False
    source: Tensor | Callable[[], Tensor] | None = None
    provenance_mask: Tensor | None = None
    valid_mask: Tensor | None = None
    annotations: dict[str, Any] = field(default_factory=dict)


@dataclass
class Sample:
    """A batch of B samples with their provenance.

    Attributes:
        inputs: [B, ...] float, what the network sees (x~ of the paper once synthesised).
        targets: [B, K] int64 classes. K = 1: hard label. K = 2: soft label, sources A and B.
        mixing_weight: [B] float32 in [0, 1], lambda: the share of source A. 1 for hard labels.
        provenance_mask: [B, 1 or C, ...] float32 in [0, 1], broadcastable to `inputs`; 1 = from A / unedited.
        is_synthetic: [B] bool; only these contribute guidance.
        index: [B] int64 position in the data set; the key of per-sample randomness and of error messages. It stays on
            the CPU, where both are made: to read it from a device the host would wait for all work queued there.
        guided: host-side: whether any sample is synthetic (avoids a device synchronisation). False switches guidance
            off for the whole batch.
        valid_mask: broadcastable to `inputs`, 0 = padding, on which guidance does not act; None = all valid.
        annotations: [B, ...] tensors for evaluation (`group` int64 [B], `box` float32 [B, 4] xyxy in pixels,
            `object_mask` float32 [B, 1, H, W]).
        present: [B, C or P] bool, on the CPU as `index` is: which channels or persons have anything valid in them;
            None where that is not known without asking the device.
    """

    inputs: Tensor
    targets: Tensor
    mixing_weight: Tensor
    provenance_mask: Tensor
    is_synthetic: Tensor
    index: Tensor
    guided: bool
    valid_mask: Tensor | None = None
    annotations: dict[str, Tensor] = field(default_factory=dict)
    present: Tensor | None = None

    @classmethod
    def real(cls, inputs: Tensor, labels: Tensor, index: Tensor | None = None) -> Sample:
        """A batch of ordinary samples: `inputs` [B, ...], `labels` [B] int64, `index` [B] (default 0..B-1)."""
        size = inputs.shape[0]
        device = inputs.device
        return cls(
            inputs=inputs,
            targets=labels[:, None],
            mixing_weight=torch.ones(size, device=device),
            provenance_mask=torch.ones(size, 1, *inputs.shape[2:], device=device),
            is_synthetic=torch.zeros(size, dtype=torch.bool, device=device),
            index=torch.arange(size) if index is None else index.cpu(),
            guided=False,
        )

    def __len__(self) -> int:
        return int(self.inputs.shape[0])

    @property
    def soft(self) -> bool:
        """True when every target is a pair of classes (two mixed sources)."""
        return self.targets.shape[1] == 2

    def map(self, function: Any) -> Sample:
        """A copy with `function(tensor)` in place of every tensor."""
        changed: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Tensor):
                changed[entry.name] = function(value)
        changed["annotations"] = {key: function(value) for key, value in self.annotations.items()}
        return replace(self, **changed)

    def carried(self, function: Any) -> Sample:
        """As `map`, without what only the host reads: `index` and `present` stay where they are."""
        kept = {id(self.index), id(self.present)}
        return self.map(lambda tensor: tensor if id(tensor) in kept else function(tensor))

    def to(self, device: torch.device | str) -> Sample:
        """All tensors but `index` and `present` on the device; the host does not wait for copies of pinned memory."""
        return self.carried(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Sample:
        """Called by the DataLoader when it pins memory."""
        return self.carried(lambda tensor: tensor.pin_memory())

    def __getitem__(self, rows: slice | Tensor) -> Sample:
        """The samples of the given rows: a slice, or an index tensor, which the host has to wait for unless it is on
        the CPU."""
        if isinstance(rows, slice):
            return self.map(lambda tensor: tensor[rows])
        devices = {self.inputs.device, self.index.device}
        places = {device: send(rows, device) if rows.device.type == "cpu" else rows.to(device) for device in devices}
        return self.map(lambda tensor: tensor[places[tensor.device]])


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A small tensor of the host on the device. The host does not wait: copies to CUDA leave from pinned memory."""
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def collate(items: Sequence[Item], indices: Sequence[int], bytes_too: bool = False, full_mask: bool = True) -> Sample:
    """Stacks transformed items into a batch.

    Args:
        items: transformed items; `inputs` are float tensors of one shape.
        indices: their positions in the data set.
        bytes_too: `inputs` may be uint8, for someone who makes floats of them later; all of one type.
        full_mask: False makes a provenance mask that is 1 everywhere [B, 1, ...] with one element per sample.

    Raises:
        UserError: a mask that does not fit, inputs of different shapes or no float tensors, a NaN in the inputs, or
            annotations that not every item has; the message names the item.
    """
    first = items[0]
    for item in items:
        check_item(item, first, bytes_too)
    size, shape = len(items), first.inputs.shape[1:]
    masks = [item.provenance_mask for item in items]
    channels = max((mask.shape[0] for mask in masks if mask is not None), default=1)
    masked = any(mask is not None for mask in masks)
    sample = Sample(
        inputs=stacked([item.inputs.as_subclass(Tensor) for item in items]),
        targets=torch.tensor([[item.target] for item in items]),
        mixing_weight=torch.ones(size),
        provenance_mask=torch.ones(size, channels, *(shape if full_mask or masked else [1] * len(shape))),
        is_synthetic=torch.tensor([item.is_synthetic for item in items]),
        index=torch.tensor(list(indices)),
        guided=any(item.is_synthetic for item in items),
    )
    for row, mask in enumerate(masks):
        if mask is not None:
            sample.provenance_mask[row] = mask.as_subclass(Tensor)
    if any(item.valid_mask is not None for item in items):
        sample.valid_mask = torch.stack(
            [torch.ones_like(row) if item.valid_mask is None else item.valid_mask.to(row.dtype)
             for row, item in zip(sample.inputs, items, strict=True)]
        )  # fmt: skip
        sample.present = sample.valid_mask.flatten(2).any(dim=2)
    sample.annotations = {
        key: torch.stack([torch.as_tensor(item.annotations[key]).as_subclass(Tensor).squeeze(0) if key == "box"
                          else torch.as_tensor(item.annotations[key]).as_subclass(Tensor) for item in items])
        for key in first.annotations
    }  # fmt: skip
    return sample


def stacked(rows: Sequence[Tensor]) -> Tensor:
    """`torch.stack`; bytes [C, H, W] that lie in memory pixel by pixel are copied as they lie, four times as fast."""
    if all(row.dtype == torch.uint8 and row.dim() == 3 and row.stride(0) == 1 < row.stride(2) for row in rows):
        return torch.stack([row.permute(1, 2, 0) for row in rows]).permute(0, 3, 1, 2)
    return torch.stack(list(rows))


def check_item(item: Item, first: Item, bytes_too: bool) -> None:
    """Raises UserError when `item` cannot be trained on or does not stack with `first`."""
    if item.inputs.shape != first.inputs.shape:
        raise UserError(
            f"{item.name}: inputs have shape {tuple(item.inputs.shape)}, those of {first.name} have "
            f"{tuple(first.inputs.shape)}; all must have one shape"
        )
    if not item.inputs.is_floating_point() and not (bytes_too and item.inputs.dtype == torch.uint8):
        raise UserError(
            f"{item.name}: inputs are {item.inputs.dtype}, must be floating point; let the data set's transform "
            "convert them"
        )
    # A sum is finite only if all its terms are, and takes a thirtieth of the time.
    if item.inputs.is_floating_point() and not item.inputs.sum().isfinite() and not item.inputs.isfinite().all():
        raise UserError(f"{item.name}: the inputs contain NaN or infinity; remove or repair this file")
    if item.annotations.keys() != first.annotations.keys():
        raise UserError(
            f"{item.name}: has annotations {sorted(item.annotations)}, {first.name} has {sorted(first.annotations)}; "
            "give all samples of a data set (and its edits) the same ones"
        )
    for key, value in item.annotations.items():
        shape, usual = torch.as_tensor(value).shape, torch.as_tensor(first.annotations[key]).shape
        if shape != usual:
            raise UserError(
                f"{item.name}: annotation '{key}' has shape {tuple(shape)}, that of {first.name} {tuple(usual)}; all "
                "must have one shape"
            )
    check_mask(item, "provenance mask", item.provenance_mask, "unedited element", channels=(1, item.inputs.shape[0]))
    check_mask(item, "valid mask", item.valid_mask, "no padding", channels=(item.inputs.shape[0],))


def check_mask(item: Item, what: str, mask: Tensor | None, one: str, channels: tuple[int, ...]) -> None:
    """Raises UserError for a mask whose shape or range is wrong; `one` says what 1 means."""
    if mask is None:
        return
    if mask.dim() != item.inputs.dim() or mask.shape[1:] != item.inputs.shape[1:] or mask.shape[0] not in channels:
        raise UserError(
            f"{item.name}: the {what} has shape {tuple(mask.shape)}, the inputs have {tuple(item.inputs.shape)}; "
            f"height and width must be equal, and the first dimension must be {' or '.join(map(str, channels))}"
        )
    low, high = float(mask.min()), float(mask.max())
    if not (low >= 0.0 and high <= 1.0):
        raise UserError(f"{item.name}: {what} values span [{low:g}, {high:g}]; allowed is [0, 1], 1 = {one}")
