"""Eq. 1 of the paper: L_total = L_cls + alpha * L_PG.

B samples, K classes; `...` stands for the elements of one sample (C x H x W, or P x F x E for skeletons).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from provscale.errors import UserError
from provscale.sample import Sample

REDUCTIONS = ("sum", "mean")


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precisions become float32; float32 and float64 stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def classification_loss(logits: Tensor, sample: Sample, class_weights: Tensor | None = None) -> Tensor:
    """L_cls: cross-entropy, weighted by lambda between the two sources of a mixed sample.

    Args:
        logits: [B, K].
        sample: targets [B, 1] or [B, 2], mixing_weight [B].
        class_weights: [K] factors of each class's loss, or None. The batch loss is their product's plain mean over
            samples (not PyTorch's weighted mean), so that any split of a batch adds up to the same number.

    Returns:
        Scalar of the dtype of `logits`.
    """
    targets = sample.targets
    if class_weights is not None:
        class_weights = class_weights.to(logits.dtype)
    loss = F.cross_entropy(logits, targets[:, 0], weight=class_weights, reduction="none")
    if sample.soft:
        other = F.cross_entropy(logits, targets[:, 1], weight=class_weights, reduction="none")
        weight = sample.mixing_weight.to(logits.dtype)
        loss = weight * loss + (1 - weight) * other
    return loss.mean()


def gradient_of(score: Tensor, inputs: Tensor, create_graph: bool) -> Tensor:
    """d score / d inputs, at least FP32; the graph of `score` stays for further derivatives.

    Raises:
        UserError: `score` does not depend on `inputs`.
    """
    gradient = None
    if score.requires_grad:
        (gradient,) = torch.autograd.grad(
            score, inputs, retain_graph=True, create_graph=create_graph, allow_unused=True
        )
    if gradient is None:
        raise UserError(
            "model: the logits do not depend on the inputs, so there is no input gradient to guide; look for a "
            "detach, rounding or constant between the network's input and its output"
        )
    return at_least_float32(gradient)


def input_gradients(logits: Tensor, inputs: Tensor, sample: Sample) -> list[Tensor]:
    """grad f_k with respect to the inputs, for every target column k, differentiable once more.

    The gradient is that of the synthetic samples' summed logits: one backward pass gives every sample's gradient.
    Where samples interact (train-mode BatchNorm) it contains those cross terms, as in every double backpropagation.

    Args:
        logits: [B, K], computed from `inputs`.
        inputs: [B, ...], requires grad.

    Returns:
        One tensor [B, ...] per target column: one for hard labels, those of source A and B for soft labels. At
        least FP32.

    Raises:
        UserError: the logits do not depend on the inputs.
    """
    synthetic = sample.is_synthetic.to(logits.dtype)
    gradients = []
    for column in sample.targets.unbind(dim=1):
        score = (logits.gather(1, column[:, None]).squeeze(1) * synthetic).sum()
        gradients.append(gradient_of(score, inputs, create_graph=True))
    return gradients


def guidance_penalty(
    gradients: Sequence[Tensor], sample: Sample, reduction: str = "sum", masked: bool = True
) -> Tensor:
    """L_PG from input gradients already computed.

        hard label:  || (1 - M) . grad f_y ||^2
        soft label:  || (1 - M) . grad f_A + M . grad f_B ||^2

    The squared norm is summed (`reduction="sum"`) or averaged (`"mean"`) over one sample's elements, and averaged
    over all B samples, of which real ones contribute nothing. The formula is applied as written for masks that are
    not binary (PuzzleMix). Padding (`valid_mask` 0) does not count: neither in the sum nor among the elements of the
    average.

    Args:
        gradients: one [B, ...] (hard) or two (soft: of f_A and f_B).
        masked: False replaces both mask factors by 1, the paper's "no mask" ablation.

    Returns:
        Scalar, at least FP32.

    Raises:
        UserError: unknown reduction.
    """
    if reduction not in REDUCTIONS:
        raise UserError(f"guidance.reduction: is '{reduction}', must be one of: {', '.join(REDUCTIONS)}")
    dtype = gradients[0].dtype
    mask = sample.provenance_mask.to(dtype)
    outside = gradients[0] * (1 - mask) if masked else gradients[0]
    if len(gradients) == 2:
        outside = outside + (gradients[1] * mask if masked else gradients[1])
    elements: Tensor | int = outside[0].numel()
    if sample.valid_mask is not None:
        valid = sample.valid_mask.to(dtype).expand_as(outside)
        outside = outside * valid
        elements = valid.flatten(1).sum(dim=1).clamp(min=1)
    energy = outside.square().flatten(1).sum(dim=1)
    if reduction == "mean":
        energy = energy / elements
    return (energy * sample.is_synthetic.to(dtype)).mean()


def guidance_loss(
    logits: Tensor, inputs: Tensor, sample: Sample, reduction: str = "sum", masked: bool = True
) -> Tensor:
    """L_PG of a batch whose logits were computed from `inputs` (requires grad), in an FP32 island.

    Autocast is switched off inside: gradient, mask and norm are FP32 whatever ran in the network. To be used in
    one's own single-process loop; with DDP, DeepSpeed or FSDP use `GuidedStep`, which those engines can wrap.

    Returns:
        Scalar, at least FP32, differentiable with respect to the network's parameters.
    """
    with torch.autocast(device_type=inputs.device.type, enabled=False):
        return guidance_penalty(input_gradients(logits, inputs, sample), sample, reduction, masked)
