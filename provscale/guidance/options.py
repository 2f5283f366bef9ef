"""What guidance is asked to do: one frozen, checked set of options, which is also the config's section `guidance`."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Literal

from provscale.errors import UserError
from provscale.registry import nearest

QUOTIENTS = ("share", "attribution_share")
"""Measures that are no sums over elements."""


@dataclass(frozen=True)
class GuidanceOptions:
    """Eq. 1: L = L_cls + alpha * L_PG.

    Args:
        alpha: weight of the guidance loss; 0 is the baseline arm.
        alpha_rule: fixed: alpha is that weight. gradient_ratio: alpha is how long the gradient of the weighted
            guidance loss shall be beside that of L_cls (parameters' gradients); the weight follows from both, measured
            over the first `alpha_steps` guided optimizer steps, and is fixed from then on.
        alpha_steps: see alpha_rule.
        score: the score whose input gradient is guided: logit (the paper), or another of `SCORES`.
        measure: how the gradient outside a target's own elements is measured: energy (the paper), or another of
            `MEASURES`.
        executor: how the step runs: eager, compiled, cuda_graph or cuda_graph_compiled; the same numbers. auto is
            cuda_graph in training on a GPU, if it can be (not with split_batch, recomputed activations, ZeRO-3 or
            FSDP2), else eager.
        mask: provenance (the method), or an ablation: random (the mask moved to a random place), independent (a new
            one of the same area), complement (1 - M) or none.
        dilation: ablation (the paper's): percent of its area by which the region M = 1 of every synthetic sample grows,
            mixed ones too; below 0 it shrinks. 0 = as it is. Edits' masks are made with a margin by
            `synthesis.options.dilate`, which is a radius; both may be set, then this comes second.
        reduction: sum or mean of the measure over one sample's elements.
        every: guide every k-th optimizer step only, with k times alpha.
        sampled_term: soft labels: none computes both terms; sample or batch draws one (for each sample, or one for the
            whole batch), half the guidance's cost, the same expectation.
        split_batch: differentiate only a batch's synthetic samples twice, real ones once: the same numbers, cheaper
            where most samples are real; for executor eager and networks without BatchNorm.

    Raises:
        UserError: a value that is not allowed, or options that exclude each other.
    """

    alpha: float = 0.0
    alpha_rule: Literal["fixed", "gradient_ratio"] = "fixed"
    alpha_steps: int = 20
    score: str = "logit"
    measure: str = "energy"
    executor: str = "auto"
    mask: Literal["provenance", "random", "independent", "complement", "none"] = "provenance"
    dilation: float = 0.0
    reduction: Literal["sum", "mean"] = "sum"
    every: int = 1
    sampled_term: Literal["none", "sample", "batch"] = "none"
    split_batch: bool = False

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for name, hint in hints.items():
            allowed = typing.get_args(hint)
            if allowed and getattr(self, name) not in allowed:
                value, hint = str(getattr(self, name)), nearest(str(getattr(self, name)), list(allowed))
                raise UserError(f"guidance.{name}: is '{value}', must be one of: {', '.join(allowed)}{hint}")
        if not 0 <= self.alpha < float("inf"):
            raise UserError(f"guidance.alpha: is {self.alpha}, must be 0 or more and finite")
        if not -100 < self.dilation < float("inf"):
            raise UserError(f"guidance.dilation: is {self.dilation}, must be above -100 percent and finite")
        for name in ("every", "alpha_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"guidance.{name}: is {getattr(self, name)}, must be at least 1")
        if self.sampled_term != "none" and self.mask == "none":
            raise UserError(
                f"guidance.sampled_term: is {self.sampled_term} while guidance.mask is none, where the two terms "
                "overlap; set one of them to its default"
            )
        if self.measure in QUOTIENTS and (self.sampled_term != "none" or self.reduction != "sum"):
            raise UserError(
                f"guidance.measure: is {self.measure}, a quotient of sums over a sample's elements, neither the sum of "
                "two terms nor a mean over elements; leave guidance.sampled_term and guidance.reduction at their "
                "defaults"
            )
        if self.split_batch and self.executor not in ("auto", "eager"):
            raise UserError(
                f"guidance.split_batch: is true while guidance.executor is {self.executor}, which would record every "
                "number of synthetic samples anew; set it to false, or use guidance.executor eager"
            )
