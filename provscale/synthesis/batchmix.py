"""BatchMix: skeleton sequences of two clips in one, with the source of every element.

B clips, P person slots, F frames, E elements of a skeleton. The recipe of the published results is not public. The
augmentation of Structured Keypoint Pooling "mixes multiple point clouds extracted from different videos" (Hachiuma et
al., CVPR 2023), and the same authors' SLPS (2026) reshapes pairs of clips into one with everybody in it. So `overlay`
puts everybody of both clips together; nobody is left out, and no label becomes wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from provscale.errors import UserError
from provscale.sample import Sample, send
from provscale.synthesis.base import SYNTHESES, Mixing, mixed

Variant = Literal["overlay", "persons", "frames", "both"]
FROM_A, FROM_B, NOBODY = 0, 1, 2


def mix_persons(
    generator: np.random.Generator, occupied_a: np.ndarray, occupied_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Who is in each slot of the mixed clip.

    1 to all persons of A stay in their slots and 1 to all of B join them in slots that are free then, both numbers
    uniform. If they are more than P, persons leave the larger group, one by one.

    Args:
        occupied_a, occupied_b: bool [P], slots that hold a person of A and of B.

    Returns:
        source int64 [P]: FROM_A, FROM_B or NOBODY; and slot int64 [P]: where in B a person FROM_B is taken from.
    """
    slots = len(occupied_a)
    chosen = [generator.permutation(np.flatnonzero(occupied)) for occupied in (occupied_a, occupied_b)]
    counts = [int(generator.integers(1, len(people) + 1)) if len(people) else 0 for people in chosen]
    while sum(counts) > slots:
        counts[int(counts[1] > counts[0])] -= 1
    source, slot = np.full(slots, NOBODY), np.arange(slots)
    source[chosen[0][: counts[0]]] = FROM_A
    joined = generator.permutation(np.flatnonzero(source == NOBODY))[: counts[1]]
    source[joined], slot[joined] = FROM_B, chosen[1][: counts[1]]
    return source, slot


def mix_frames(generator: np.random.Generator, frames: int, beta: float) -> tuple[int, int]:
    """First and end frame of the run that B takes part in: its share 1 - lambda, lambda ~ Beta(b, b), at least one."""
    length = max(round(frames * (1 - generator.beta(beta, beta))), 1)
    first = int(generator.integers(frames - length + 1))
    return first, first + length


@SYNTHESES.register("batchmix")
@dataclass
class BatchMix(Mixing):
    """M in {0, 1}^(P x F x E) says of each element of the mixed clip whether it comes from A.

    lambda is A's share of the elements that are there; a mixed clip in which nobody is seen stays A. Padding of the
    mixed clip is marked in `valid_mask`, so that guidance acts on real coordinates and confidences only.

    Args:
        variant: `overlay`: everybody of both clips, A's in the first P slots and B's in P more. Ablations, which drop
            people while the label stays: `persons`: some people of both clips, for their whole sequences (see
            `mix_persons`); `frames`: a run of frames of A is replaced by B's (see `mix_frames`); `both`: people of B
            join within a run of frames.
        beta: parameter b of the run's length.
        slots: of `overlay`: person slots of a mixed clip; null = 2 P, enough for both. With fewer the least confident
            persons are left out and counted.

    Attributes:
        persons, dropped: how many persons `overlay` has seen in this process, and how many of them it left out.

    Raises:
        UserError: another variant, beta not above 0, or slots that are no positive number.
    """

    variant: Variant = "overlay"
    beta: float = 1.0
    slots: int | None = None

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            raise UserError(
                f"synthesis.options.variant: is '{self.variant}', must be one of: {', '.join(get_args(Variant))}"
            )
        if not self.beta > 0:
            raise UserError(f"synthesis.options.beta: is {self.beta}, must be above 0")
        if self.slots is not None and (self.slots < 1 or self.variant != "overlay"):
            raise UserError(
                f"synthesis.options.slots: is {self.slots} with variant {self.variant}; it must be at least 1, and "
                "belongs to variant overlay"
            )
        self.persons = self.dropped = 0

    def mix(self, sample: Sample, partners: Sample, generators: list[np.random.Generator]) -> Sample:
        inputs = sample.inputs
        if inputs.dim() != 4:
            raise UserError(
                f"synthesis.name: batchmix mixes skeletons [B, P, F, E], this data set has inputs of shape "
                f"{list(inputs.shape)}; choose cutmix or resizemix for images"
            )
        valid_a, valid_b = validity(sample), validity(partners)
        if self.variant == "overlay":
            return self.overlay(sample, partners, valid_a, valid_b)
        occupied = [who_is_there(part, valid) for part, valid in ((sample, valid_a), (partners, valid_b))]
        source, slot = (
            send(drawn, inputs.device) for drawn in self.draw(occupied[0], occupied[1], inputs.shape[2], generators)
        )
        places = slot[:, :, None, None].expand_as(inputs)
        other, valid_b = partners.inputs.gather(1, places), valid_b.gather(1, places)
        source = source[..., None].expand_as(inputs)
        mask = (source != FROM_B).to(torch.float32)
        valid = torch.where(source == FROM_B, valid_b, valid_a) * (source != NOBODY)
        nobody = valid.flatten(1).sum(dim=1) == 0
        stays = nobody[:, None, None, None]
        mask, valid = torch.where(stays, 1.0, mask), torch.where(stays, valid_a, valid)
        merged = torch.where(mask.bool(), inputs, other) * (valid > 0)
        total = valid.flatten(1).sum(dim=1)
        weight = torch.where(total > 0, (valid * mask).flatten(1).sum(dim=1) / total.clamp(min=1), 1.0)
        return mixed(sample, partners, merged, mask, weight, valid)

    def overlay(self, sample: Sample, partners: Sample, valid_a: Tensor, valid_b: Tensor) -> Sample:
        """Everybody of both clips: [B, S, F, E] with S = `slots` or 2 P."""
        inputs, valid = torch.cat([sample.inputs, partners.inputs], dim=1), torch.cat([valid_a, valid_b], dim=1)
        mask = torch.cat([torch.ones_like(valid_a), torch.zeros_like(valid_b)], dim=1)
        present = np.concatenate([who_is_there(sample, valid_a), who_is_there(partners, valid_b)], axis=1).sum(axis=1)
        slots = inputs.shape[1] if self.slots is None else min(self.slots, inputs.shape[1])
        self.persons += int(present.sum())
        self.dropped += int(np.maximum(present - slots, 0).sum())
        if slots < inputs.shape[1]:
            evidence = (inputs * valid).unflatten(3, (-1, 3))[..., 2].flatten(2).sum(dim=2)
            kept = evidence.topk(slots, dim=1).indices.sort(dim=1).values[:, :, None, None]
            inputs, valid, mask = (
                part.gather(1, kept.expand(-1, -1, *part.shape[2:])) for part in (inputs, valid, mask)
            )
        total = valid.flatten(1).sum(dim=1)
        weight = torch.where(total > 0, (valid * mask).flatten(1).sum(dim=1) / total.clamp(min=1), 1.0)
        return mixed(sample, partners, inputs * (valid > 0), mask, weight, valid)

    def remark(self) -> str:
        if not self.dropped:
            return ""
        return (
            f"batchmix: {self.dropped} of {self.persons} persons found no slot so far, the least confident ones; "
            "synthesis.options.slots sets their number"
        )

    def draw(
        self, occupied_a: np.ndarray, occupied_b: np.ndarray, frames: int, generators: list[np.random.Generator]
    ) -> tuple[Tensor, Tensor]:
        """source int64 [B, P, F] (FROM_A, FROM_B, NOBODY), and slot int64 [B, P] in B.

        Args:
            occupied_a, occupied_b: bool [B, P], slots that hold a person of A and of B.
        """
        size, slots = occupied_a.shape
        source, slot = np.zeros((size, slots, frames), dtype=np.int64), np.tile(np.arange(slots), (size, 1))
        for row, generator in enumerate(generators):
            first, end = (0, frames) if self.variant == "persons" else mix_frames(generator, frames, self.beta)
            if self.variant == "frames":
                source[row, :, first:end] = FROM_B
            else:
                who, slot[row] = mix_persons(generator, occupied_a[row], occupied_b[row])
                source[row, :, first:end] = who[:, None]
        return torch.from_numpy(source), torch.from_numpy(slot)


def who_is_there(sample: Sample, valid: Tensor) -> np.ndarray:
    """bool [B, P]: slots that hold a person. Known to the loader; else it is asked of the device, which takes time.

    Args:
        valid: `validity(sample)`.
    """
    present = valid.flatten(2).any(dim=2).cpu() if sample.present is None else sample.present
    return present.numpy()


def validity(sample: Sample) -> Tensor:
    """`valid_mask` [B, P, F, E] float32; ones where a data set gives none."""
    if sample.valid_mask is None:
        return torch.ones_like(sample.inputs, dtype=torch.float32)
    return sample.valid_mask.expand_as(sample.inputs).to(torch.float32)
