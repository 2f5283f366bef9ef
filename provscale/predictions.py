"""What a network can be asked for in evaluation, by name. Each output is a function of network and sample.

A function registered in `OUTPUTS` returns a dictionary with its own name in it, and `logits` too where it has computed
them anyway. It runs without gradients, in the step's precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from provscale.errors import UserError
from provscale.guidance.loss import at_least_float32, gradient_of
from provscale.registry import Registry
from provscale.sample import Sample

Output = Callable[[nn.Module, Sample], dict[str, Tensor]]

OUTPUTS: Registry[Output] = Registry("output")


def run_network(network: nn.Module, inputs: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, dict[str, Tensor]]:
    """One forward pass; the network itself runs under autocast to `dtype` unless that is None.

    Returns:
        logits [B, K] in at least FP32, and the network's own losses by name, each already weighted. A network has
        some if it returns `(logits, {"loss_NAME": scalar})` instead of logits; scalars are means over the batch.

    Raises:
        UserError: own losses that are not named `loss_NAME`, are no scalars, or take a name of the step's.
    """
    with torch.autocast(inputs.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        result = network(inputs)
    logits, own = result if isinstance(result, tuple) else (result, {})
    for name, value in own.items():
        if not name.startswith("loss_") or name in ("loss_cls", "loss_guidance") or value.dim() != 0:
            raise UserError(
                f"model: {type(network).__name__} returns a loss '{name}' of shape {tuple(value.shape)}; own losses "
                "must be scalars named loss_NAME, other than loss_cls and loss_guidance"
            )
    return at_least_float32(logits), {name: at_least_float32(value) for name, value in own.items()}


def predict(network: nn.Module, sample: Sample, outputs: Iterable[str], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The outputs asked for, and `logits` always; detached, at least FP32.

    Args:
        network: in the mode (train or eval) that the caller wants.
        outputs: names in `OUTPUTS`.
        dtype: of autocast, or None for FP32.

    Raises:
        UserError: an unknown name, or a network that cannot give what is asked for.
    """
    functions = {name: OUTPUTS[name] for name in sorted({*outputs})}
    result: dict[str, Tensor] = {}
    # Logits last: most other outputs bring them along.
    functions["logits"] = functions.pop("logits", logits)
    for name, function in functions.items():
        if name not in result:
            device = sample.inputs.device.type
            with torch.no_grad(), torch.autocast(device, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                found = function(network, sample)
            result.update({key: at_least_float32(value.detach()) for key, value in found.items()})
    return result


@OUTPUTS.register("logits")
def logits(network: nn.Module, sample: Sample) -> dict[str, Tensor]:
    """`logits` [B, K]."""
    result = network(sample.inputs)
    return {"logits": result[0] if isinstance(result, tuple) else result}


def gradient_of_scores(network: nn.Module, sample: Sample, scores: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The gradient [B, ...] of `scores(logits).sum()` for the inputs, and the logits [B, K]."""
    inputs = sample.inputs.detach().requires_grad_()
    device = inputs.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    # As in training, the derivative is no matter of autocast. Nobody differentiates it again: attention may be fused.
    with torch.enable_grad(), torch.autocast(device, enabled=False):
        found, _ = run_network(network, inputs, dtype)
        return gradient_of(scores(found).sum(), inputs, create_graph=False), found


@OUTPUTS.register("input_gradient")
def input_gradient(network: nn.Module, sample: Sample) -> dict[str, Tensor]:
    """`input_gradient` [B, ...], of the first target's logit."""
    gradient, found = gradient_of_scores(network, sample, lambda logits: logits.gather(1, sample.targets[:, :1]))
    return {"input_gradient": gradient, "logits": found}


@OUTPUTS.register("saliency")
def saliency(network: nn.Module, sample: Sample) -> dict[str, Tensor]:
    """`saliency` [B, 1, H, W]: sqrt(mean over channels of g^2), g the input gradient of the sample's cross-entropy with
    its first target (PuzzleMix; Kim et al., ICML 2020)."""

    def cross_entropy(logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, sample.targets[:, 0], reduction="none")

    gradient, found = gradient_of_scores(network, sample, cross_entropy)
    return {"saliency": gradient.square().mean(dim=1, keepdim=True).sqrt(), "logits": found}


@OUTPUTS.register("score_map")
def score_map(network: nn.Module, sample: Sample) -> dict[str, Tensor]:
    """`score_map` [B, h, w]: the class activation map of the first target.

    A network with a method `logits_and_score_map(inputs, classes)` answers for itself. For a timm network of
    convolutions, global average pooling and one linear layer, the map is that layer's weight of the class, summed
    over the channels of the last feature map (Zhou et al., CVPR 2016).

    Raises:
        UserError: the network has neither.
    """
    inputs, classes = sample.inputs, sample.targets[:, 0]
    model: Any = network
    if hasattr(model, "logits_and_score_map"):
        found, maps = model.logits_and_score_map(inputs, classes)
        return {"score_map": maps, "logits": found}
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None
    if not (isinstance(classifier, nn.Linear) and hasattr(model, "forward_features")):
        raise UserError(
            f"evaluation.metrics: localisation needs class activation maps, but {type(model).__name__} has neither "
            "a method logits_and_score_map nor a linear classifier on feature maps; remove 'maxboxacc'"
        )
    features = model.forward_features(inputs)
    if features.dim() != 4:
        raise UserError(
            f"evaluation.metrics: {type(model).__name__} gives features of shape {tuple(features.shape)}, class "
            "activation maps need [B, C, h, w]; remove 'maxboxacc' or add a method logits_and_score_map"
        )
    maps = torch.einsum("bchw,bc->bhw", features, classifier.weight[classes].to(features.dtype))
    return {"score_map": maps, "logits": model.forward_head(features)}


@OUTPUTS.register("instance_scores")
def instance_scores(network: nn.Module, sample: Sample) -> dict[str, Tensor]:
    """`instance_scores` [B, ..., K]: logits of the parts of an input, such as the skeletons of a clip.

    Raises:
        UserError: the network has no method `logits_and_instance_scores(inputs)`.
    """
    own = getattr(network, "logits_and_instance_scores", None)
    if own is None:
        raise UserError(
            f"evaluation.metrics: action tubes need a score of each skeleton, but {type(network).__name__} has no "
            "method logits_and_instance_scores; use model.name skp, or remove 'video_ap'"
        )
    found, scores = own(sample.inputs)
    return {"instance_scores": scores, "logits": found}
