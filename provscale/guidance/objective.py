"""The method: network -> input gradient -> L_PG -> parameter gradients, of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from provscale.guidance.loss import PAPER, at_least_float32, classification_loss, guidance_loss
from provscale.guidance.options import GuidanceOptions
from provscale.predictions import run_network
from provscale.sample import Sample
from provscale.second_derivatives.attention import twice_differentiable_attention
from provscale.second_derivatives.differentiability import refuse_first_order_operations
from provscale.second_derivatives.substitute import fast_second_derivatives

Losses = dict[str, Tensor]
"""Detached FP32 scalars by name: `loss` (all together), `loss_cls`, `loss_guidance` (not multiplied by alpha; 0 when
unguided), and the network's own, `loss_NAME`."""

Gradients = list[Tensor | None]
"""d loss / d parameter, in the parameters' order; None for one that the loss does not depend on."""


def is_guided(sample: Sample, alpha: float | Tensor) -> bool:
    """Whether a step computes L_PG. A tensor alpha is not looked at: the host would wait for the device."""
    return sample.guided and (isinstance(alpha, Tensor) or alpha != 0)


@dataclass(frozen=True)
class Objective:
    """What training minimises: L_cls + alpha * L_PG (Eq. 1), and the network's own losses.

    Attributes:
        options: how L_PG is made.
        class_weights: [K] factors of L_cls, or None.
        autocast_dtype: of the network, or None for FP32; losses and derivatives are at least FP32 in any case.
    """

    options: GuidanceOptions = PAPER
    class_weights: Tensor | None = None
    autocast_dtype: torch.dtype | None = None

    def terms(self, network: nn.Module, sample: Sample, guided: bool) -> Losses:
        """`loss_cls`, `loss_guidance` (0 unless `guided`) and the network's own, each with its graph."""
        inputs = sample.inputs.detach().requires_grad_(guided)
        # A caller's autocast would also act on the derivatives taken here, and on a network that is to run in FP32.
        with torch.enable_grad(), torch.autocast(inputs.device.type, enabled=False):
            if guided:
                with twice_differentiable_attention(), fast_second_derivatives(network):
                    logits, own = run_network(network, inputs, self.autocast_dtype)
                loss_guidance = guidance_loss(logits, inputs, sample, self.options)
            else:
                logits, own = run_network(network, inputs, self.autocast_dtype)
                loss_guidance = logits.new_zeros(())
            loss_cls = classification_loss(logits, sample, self.class_weights)
        return {"loss_cls": loss_cls, "loss_guidance": loss_guidance, **own}

    def __call__(
        self,
        network: nn.Module,
        parameters: Sequence[Tensor],
        sample: Sample,
        alpha: float | Tensor,
        share: float = 1.0,
        verify: bool = False,
    ) -> tuple[Losses, Gradients]:
        """One whole step. Every executor runs this, in one way or another.

        Args:
            parameters: what gradients are wanted of.
            alpha: weight of L_PG; 0 computes no second derivative. A scalar tensor is taken for not 0.
            share: factor of losses and gradients: the part of a batch that `sample` is.
            verify: look for operations whose second derivative PyTorch would leave out silently; once is enough.
        """
        guided = is_guided(sample, alpha)
        losses = self.terms(network, sample, guided)
        with torch.enable_grad(), torch.autocast(sample.inputs.device.type, enabled=False):
            if share != 1:
                losses = {name: share * value for name, value in losses.items()}
            weight = alpha.to(losses["loss_guidance"].dtype) if isinstance(alpha, Tensor) else alpha
            others = [value for name, value in losses.items() if name not in ("loss_cls", "loss_guidance")]
            loss = sum(others, losses["loss_cls"] + weight * losses["loss_guidance"])
            if guided and verify:
                refuse_first_order_operations(loss)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return {name: value.detach() for name, value in {"loss": loss, **losses}.items()}, list(gradients)

    def term_gradients(self, network: nn.Module, parameters: Sequence[Tensor], sample: Sample) -> dict[str, Tensor]:
        """The gradients of L_cls and of L_PG apart: how long they are says whether guidance is felt.

        Returns:
            `gradient_cls` and `gradient_guidance` (not multiplied by alpha), [number of parameters], at least FP32.
        """
        losses = self.terms(network, sample, guided=True)
        result = {}
        for name in ("cls", "guidance"):
            found = torch.autograd.grad(losses[f"loss_{name}"], parameters, retain_graph=True, allow_unused=True)
            filled = (
                torch.zeros_like(parameter) if gradient is None else gradient
                for parameter, gradient in zip(parameters, found, strict=True)
            )
            result[f"gradient_{name}"] = torch.cat([at_least_float32(gradient).flatten() for gradient in filled])
        return result
