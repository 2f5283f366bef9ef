"""The training step as one module: what Accelerate, DDP, DeepSpeed and FSDP wrap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from provscale.errors import UserError
from provscale.guidance.carrier import GradientCarrier
from provscale.guidance.executors.base import EXECUTORS, StepSettings, run_network, twice_differentiable_attention
from provscale.guidance.loss import REDUCTIONS, at_least_float32, gradient_of
from provscale.guidance.sampled_term import SAMPLED_TERMS
from provscale.models.instance_scores import logits_and_instance_scores
from provscale.models.score_map import logits_and_score_map
from provscale.sample import Sample

PRECISIONS: dict[str, torch.dtype | None] = {"no": None, "bf16": torch.bfloat16}
MASKS = ("provenance", "random", "none")


def check(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{key}: is '{value}', must be one of: {', '.join(allowed)}")


class GuidedStep(nn.Module):
    """Wraps a network; in training its forward returns losses whose gradient is already known.

    >>> step = GuidedStep(network, alpha=0.05)
    >>> step, optimizer = accelerator.prepare(step, optimizer)
    >>> accelerator.backward(step(sample)["loss"])

    Args:
        network: maps inputs [B, ...] to logits [B, K].
        alpha: weight of L_PG; 0 is the baseline.
        reduction: `sum` (default) or `mean` over a sample's elements.
        mask: `provenance` uses `sample.provenance_mask`; so does `random`, for which the caller moves that mask
            (`random_mask`); `none` drops it from L_PG.
        precision: `no` (FP32) or `bf16` (autocast inside the step; guidance stays FP32).
        class_weights: [K] factors of the classification loss, or None.
        executor: a name in `EXECUTORS`.
        sampled_term: `none` computes both terms of a soft label; `sample` or `batch` one, drawn at random.
        split_batch: differentiates only a batch's synthetic samples twice, in a pass of their own; the same numbers.
            A network with dropout draws others (so does sampled_term `sample`), from the same distribution. For the
            eager executor; waits for the device once in a guided step, to read which samples are synthetic.

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
        reduction: str = "sum",
        mask: str = "provenance",
        precision: str = "no",
        class_weights: Tensor | None = None,
        executor: str = "eager",
        sampled_term: str = "none",
        split_batch: bool = False,
    ) -> None:
        super().__init__()
        check("guidance.mask", mask, MASKS)
        check("guidance.reduction", reduction, REDUCTIONS)
        check("train.precision", precision, tuple(PRECISIONS))
        check("guidance.sampled_term", sampled_term, SAMPLED_TERMS)
        if sampled_term != "none" and mask == "none":
            raise UserError(
                f"guidance.sampled_term: is {sampled_term} while guidance.mask is none, where the two terms overlap; "
                "set one of them to its default"
            )
        if split_batch and executor != "eager":
            raise UserError(
                f"guidance.split_batch: is true while guidance.executor is {executor}, which would record every number "
                "of synthetic samples anew; set it to false, or use guidance.executor eager"
            )
        if not 0 <= alpha < float("inf"):
            raise UserError(f"guidance.alpha: is {alpha}, must be 0 or more and finite")
        self.network = network
        self.alpha = alpha
        self.reduction = reduction
        self.masked = mask != "none"
        self.sampled_term = sampled_term
        self.split_batch = split_batch
        self.autocast_dtype = PRECISIONS[precision]
        self.executor = EXECUTORS[executor]()
        # Not a part of the checkpoint: the config and the data set give it anew.
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.verified = False

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
            outputs: names of predictions wanted: `logits`, `score_map`, `instance_scores`, `input_gradient`.

        Returns:
            Training: `loss` (scalar; its backward fills parameter gradients), `loss_cls`, `loss_guidance`
            (detached). Prediction: see `predict`.
        """
        if outputs is not None:
            return self.predict(sample, outputs)
        return self.train_step(sample, anchor)

    def train_step(self, sample: Sample, anchor: Tensor | None) -> dict[str, Tensor]:
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        settings = self.settings()
        settings.verify = not self.verified
        losses, gradients = self.executor(self.network, parameters, sample, settings)
        self.verified = self.verified or (sample.guided and self.alpha != 0)
        return {
            "loss": GradientCarrier.apply(losses.loss, gradients, anchor, *parameters),
            "loss_cls": losses.loss_cls,
            "loss_guidance": losses.loss_guidance,
        }

    def settings(self) -> StepSettings:
        return StepSettings(
            self.alpha,
            self.reduction,
            self.masked,
            self.autocast_dtype,
            self.class_weights,
            self.sampled_term,
            self.split_batch,
        )

    def predict(self, sample: Sample, outputs: frozenset[str]) -> dict[str, Tensor]:
        """Predictions for evaluation, detached, at least FP32.

        Returns:
            `logits` [B, K]; if asked for, `score_map` [B, h, w] (class activation map of the first target),
            `instance_scores` [B, ..., K] (logits of an input's parts) and `input_gradient` [B, ...] (gradient of the
            first target's logit).
        """
        result: dict[str, Tensor] = {}
        target = sample.targets[:, :1]
        if "input_gradient" in outputs:
            inputs = sample.inputs.detach().requires_grad_()
            # As in training: no caller's autocast, and the attention whose gradient guidance acts on.
            with torch.enable_grad(), torch.autocast(inputs.device.type, enabled=False):
                with twice_differentiable_attention():
                    logits = run_network(self.network, inputs, self.autocast_dtype)
                result["input_gradient"] = gradient_of(logits.gather(1, target).sum(), inputs, create_graph=False)
            result["logits"] = logits.detach()
        with torch.no_grad():
            if "instance_scores" in outputs:
                logits, result["instance_scores"] = self._mapped(logits_and_instance_scores, sample.inputs)
                result["logits"] = logits
            if "score_map" in outputs:
                logits, score_map = self._mapped(logits_and_score_map, sample.inputs, target[:, 0])
                result["score_map"] = score_map
                result["logits"] = logits
            elif "logits" not in result:
                result["logits"] = run_network(self.network, sample.inputs, self.autocast_dtype)
        return result

    def _mapped(self, function: Callable[..., tuple[Tensor, Tensor]], *arguments: Tensor) -> tuple[Tensor, Tensor]:
        """Two outputs of `function(network, *arguments)`, run under the step's autocast."""
        dtype: Any = self.autocast_dtype
        device = arguments[0].device.type
        with torch.autocast(device, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            first, second = function(self.network, *arguments)
        return at_least_float32(first), at_least_float32(second)
