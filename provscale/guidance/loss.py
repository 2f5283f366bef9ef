"""Eq. 1 of the paper: L_total = L_cls + alpha * L_PG.

B samples, K classes; `...` stands for the elements of one sample (C x H x W, or P x F x E for skeletons).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from provscale.errors import UserError
from provscale.guidance.measures import MEASURES
from provscale.guidance.options import GuidanceOptions
from provscale.guidance.sampled_term import draw_first, one_term
from provscale.guidance.scores import SCORES
from provscale.sample import Sample

PAPER = GuidanceOptions()
"""Eq. 1 as the paper has it."""


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


def input_gradients(logits: Tensor, inputs: Tensor, sample: Sample, score: str = "logit") -> list[Tensor]:
    """grad f_k with respect to the inputs, for every target column k, differentiable once more.

    The gradient is that of the synthetic samples' summed scores: one backward pass gives every sample's gradient.
    Where samples interact (train-mode BatchNorm) it contains those cross terms, as in every double backpropagation.

    Args:
        logits: [B, K], computed from `inputs`.
        inputs: [B, ...], requires grad.
        score: a name in `SCORES`; `logit` is the paper's f_k.

    Returns:
        One tensor [B, ...] per target column: one for hard labels, those of source A and B for soft labels. At
        least FP32.

    Raises:
        UserError: the logits do not depend on the inputs.
    """
    synthetic = sample.is_synthetic.to(logits.dtype)
    scores = [SCORES[score](logits, classes) for classes in sample.targets.unbind(dim=1)]
    return [gradient_of((values * synthetic).sum(), inputs, create_graph=True) for values in scores]


def guidance_penalty(gradients: Sequence[Tensor], sample: Sample, options: GuidanceOptions = PAPER) -> Tensor:
    """L_PG from input gradients already computed.

        hard label:  || (1 - M) . grad f_y ||^2
        soft label:  || (1 - M) . grad f_A + M . grad f_B ||^2

    The squared norm (or another `options.measure`) is summed (`options.reduction` `sum`) or averaged (`mean`) over one
    sample's elements, and averaged over all B samples, of which real ones contribute nothing. The formula is applied
    as written for masks that are not binary (PuzzleMix). Padding (`valid_mask` 0) does not count: neither in the sum
    nor among the elements of the average. `options.mask` `none` replaces both mask factors by 1, the paper's ablation.

    Args:
        gradients: one [B, ...] (hard) or two (soft: of f_A and f_B).

    Returns:
        Scalar, at least FP32.
    """
    dtype = gradients[0].dtype
    elements: Tensor | int = gradients[0][0].numel()
    if sample.valid_mask is not None:
        valid = sample.valid_mask.to(dtype).expand_as(gradients[0])
        gradients = [gradient * valid for gradient in gradients]
        elements = valid.flatten(1).sum(dim=1).clamp(min=1)
    if options.mask == "none":
        outside = gradients[0] if len(gradients) == 1 else gradients[0] + gradients[1]
    else:
        mask = sample.provenance_mask.to(dtype)
        outside = gradients[0] * (1 - mask)
        if len(gradients) == 2:
            outside = outside + gradients[1] * mask
    values = MEASURES[options.measure](outside, gradients, sample)
    if options.reduction == "mean":
        values = values / elements
    return (values * sample.is_synthetic.to(dtype)).mean()


def guidance_loss(logits: Tensor, inputs: Tensor, sample: Sample, options: GuidanceOptions = PAPER) -> Tensor:
    """L_PG of a batch whose logits were computed from `inputs` (requires grad), in an FP32 island.

    Autocast is switched off inside: gradient, mask and norm are FP32 whatever ran in the network. To be used in
    one's own single-process loop; with DDP, DeepSpeed or FSDP use `GuidedStep`, which those engines can wrap.

    Args:
        logits: [B, K].
        inputs: [B, ...].
        options: score, measure, mask, reduction and sampled_term are read; the default is the paper's Eq. 1.

    Returns:
        Scalar, at least FP32, differentiable with respect to the network's parameters. With `options.sampled_term`
        an estimate of it from one of a soft label's two terms.
    """
    factor = 1
    if options.sampled_term != "none" and sample.soft:
        sample, factor = one_term(sample, draw_first(sample, options.sampled_term)), 2
    with torch.autocast(device_type=inputs.device.type, enabled=False):
        penalty = guidance_penalty(input_gradients(logits, inputs, sample, options.score), sample, options)
    return factor * penalty
