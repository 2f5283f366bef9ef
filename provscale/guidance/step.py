"""The training step as one module: what Accelerate, DDP, DeepSpeed and FSDP wrap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from provscale.guidance.carrier import GradientCarrier
from provscale.guidance.executors import EXECUTORS, StepSettings, run_network, twice_differentiable_attention
from provscale.models.score_map import logits_and_score_map
from provscale.sample import Sample

PRECISIONS: dict[str, torch.dtype | None] = {"no": None, "bf16": torch.bfloat16}


class GuidedStep(nn.Module):
    """Wraps a network; in training its forward returns losses whose gradient is already known.

    >>> step = GuidedStep(network, alpha=0.05)
    >>> step, optimizer = accelerator.prepare(step, optimizer)
    >>> accelerator.backward(step(sample)["loss"])

    Args:
        network: maps inputs [B, ...] to logits [B, K].
        alpha: weight of L_PG; 0 is the baseline.
        reduction: `sum` (default) or `mean` over a sample's elements.
        mask: `none` drops the mask from L_PG; anything else uses `sample.provenance_mask`.
        precision: `no` (FP32) or `bf16` (autocast inside the step; guidance stays FP32).
        class_weights: [K] factors of the classification loss, or None.
        executor: a name in `EXECUTORS`.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        alpha: float,
        *,
        reduction: str = "sum",
        mask: str = "provenance",
        precision: str = "no",
        class_weights: Tensor | None = None,
        executor: str = "eager",
    ) -> None:
        super().__init__()
        self.network = network
        self.alpha = alpha
        self.reduction = reduction
        self.masked = mask != "none"
        self.autocast_dtype = PRECISIONS[precision]
        self.executor = EXECUTORS[executor]()
        # Not a part of the checkpoint: the config and the data set give it anew.
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(
        self,
        sample: Sample,
        anchor: Tensor | None = None,
        *,
        outputs: frozenset[str] | None = None,
    ) -> dict[str, Tensor]:
        """Runs a training step, or, when `outputs` is given, a prediction.

        Args:
            sample: a batch on the network's device.
            anchor: scalar that requires grad, needed by ZeRO-3 and FSDP2: their hooks wait for its gradient.
            outputs: names of predictions wanted: `logits`, `score_map`, `input_gradient`.

        Returns:
            Training: `loss` (scalar; its backward fills parameter gradients), `loss_cls`, `loss_guidance`
            (detached). Prediction: see `predict`.
        """
        if outputs is not None:
            return self.predict(sample, outputs)
        return self.train_step(sample, anchor)

    def train_step(self, sample: Sample, anchor: Tensor | None) -> dict[str, Tensor]:
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        losses, gradients = self.executor(self.network, parameters, sample, self.settings())
        return {
            "loss": GradientCarrier.apply(losses.loss, gradients, anchor, *parameters),
            "loss_cls": losses.loss_cls,
            "loss_guidance": losses.loss_guidance,
        }

    def settings(self) -> StepSettings:
        return StepSettings(self.alpha, self.reduction, self.masked, self.autocast_dtype, self.class_weights)

    def predict(self, sample: Sample, outputs: frozenset[str]) -> dict[str, Tensor]:
        """Predictions, detached FP32, for evaluation.

        Returns:
            `logits` [B, K]; if asked for, `score_map` [B, h, w] (class activation map of the first target) and
            `input_gradient` [B, ...] (gradient of the first target's logit).
        """
        result: dict[str, Tensor] = {}
        target = sample.targets[:, :1]
        if "input_gradient" in outputs:
            with torch.enable_grad(), twice_differentiable_attention():
                inputs = sample.inputs.detach().requires_grad_()
                logits = run_network(self.network, inputs, self.autocast_dtype)
                (gradient,) = torch.autograd.grad(logits.gather(1, target).sum(), inputs)
            result["input_gradient"] = gradient.float()
            result["logits"] = logits.detach()
        with torch.no_grad():
            if "score_map" in outputs:
                logits, score_map = self._mapped(sample.inputs, target[:, 0])
                result["score_map"] = score_map
                result["logits"] = logits
            elif "logits" not in result:
                result["logits"] = run_network(self.network, sample.inputs, self.autocast_dtype)
        return result

    def _mapped(self, inputs: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        dtype: Any = self.autocast_dtype
        with torch.autocast(inputs.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            logits, score_map = logits_and_score_map(self.network, inputs, classes)
        return logits.float(), score_map.float()
