"""The training step as one module: what Accelerate, DDP, DeepSpeed and FSDP wrap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from provscale.errors import UserError
from provscale.guidance.carrier import GradientCarrier
from provscale.guidance.executors import EXECUTORS
from provscale.guidance.measures import MEASURES
from provscale.guidance.objective import Objective, is_guided
from provscale.guidance.options import GuidanceOptions
from provscale.guidance.scores import SCORES
from provscale.predictions import predict
from provscale.sample import Sample

TERM_GRADIENTS = "term_gradients"
"""An output of the step itself, beside the network's `OUTPUTS`: see `Objective.term_gradients`."""
PRECISIONS: dict[str, torch.dtype | None] = {"no": None, "bf16": torch.bfloat16}


class GuidedStep(nn.Module):
    """Wraps a network; in training its forward returns losses whose gradient is already known.

    >>> step = GuidedStep(network, alpha=0.05)
    >>> step, optimizer = accelerator.prepare(step, optimizer)
    >>> accelerator.backward(step(sample)["loss"])

    Args:
        network: maps inputs [B, ...] to logits [B, K], in training also to `(logits, {"loss_NAME": scalar})`: losses
            of its own, already weighted, which are added to Eq. 1.
        alpha: weight of L_PG; 0 is the baseline.
        precision: `no` (FP32) or `bf16` (autocast inside the step; guidance stays FP32).
        class_weights: [K] factors of the classification loss, or None.
        options: the other fields of `GuidanceOptions`. Under `mask="random"` the caller moves the sample's mask
            (`random_mask`), and it passes alpha where alpha changes (`every`, `alpha_rule`); a network with dropout
            draws other numbers under `split_batch` and `sampled_term`, from the same distribution; `split_batch` waits
            for the device once in a guided step, to read which samples are synthetic.

    Raises:
        UserError: a value outside what is allowed; at the first guided step, a network that cannot be differentiated
            twice because of a function marked `once_differentiable`; with `split_batch`, one that takes statistics of
            the batch (`refuse_batch_statistics`).
    """

    class_weights: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        alpha: float,
        *,
        precision: str = "no",
        class_weights: Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise UserError(f"train.precision: is '{precision}', must be one of: {', '.join(PRECISIONS)}")
        self.options = GuidanceOptions(alpha=alpha, **options)
        # Unknown names are refused here, not at the first guided step.
        _ = SCORES[self.options.score], MEASURES[self.options.measure]
        self.network = network
        self.autocast_dtype = PRECISIONS[precision]
        self.executor = EXECUTORS[self.options.executor]()
        # Not a part of the checkpoint: the config and the data set give it anew.
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.verified = False

    @property
    def objective(self) -> Objective:
        """What this step minimises; made anew because a module's buffers move between devices."""
        return Objective(self.options, self.class_weights, self.autocast_dtype)

    def forward(
        self,
        sample: Sample,
        anchor: Tensor | None = None,
        *,
        alpha: float | None = None,
        outputs: frozenset[str] | None = None,
    ) -> dict[str, Tensor]:
        """Runs a training step, or, when `outputs` is given, a prediction.

        Args:
            sample: a batch on the network's device.
            anchor: scalar that requires grad, needed by ZeRO-3 and FSDP2: their hooks wait for its gradient.
            alpha: weight of L_PG in this step; None = that of the options.
            outputs: names of predictions wanted, in `provscale.predictions.OUTPUTS`; or `TERM_GRADIENTS` alone.

        Returns:
            Training: `loss` (scalar; its backward fills parameter gradients), `loss_cls`, `loss_guidance` and the
            network's own (detached). Prediction: see `predict`.
        """
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        if outputs == {TERM_GRADIENTS}:
            return self.objective.term_gradients(self.network, parameters, sample)
        if outputs is not None:
            return predict(self.network, sample, outputs, self.autocast_dtype)
        alpha = self.options.alpha if alpha is None else alpha
        losses, gradients = self.executor(
            self.network, parameters, sample, self.objective, alpha, verify=not self.verified
        )
        self.verified = self.verified or is_guided(sample, alpha)
        return {**losses, "loss": GradientCarrier.apply(losses["loss"], gradients, anchor, *parameters)}
