"""Scores whose input gradient is guided. The paper takes the logit; each other one is a function and a line here.

A score maps logits [B, K] and classes [B] (int64) to a number per sample [B], differentiable with respect to the
logits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from provscale.registry import Registry

Score = Callable[[Tensor, Tensor], Tensor]

SCORES: Registry[Score] = Registry("guidance.score")


@SCORES.register("logit")
def logit(logits: Tensor, classes: Tensor) -> Tensor:
    """f_y, the paper's score (Eq. 1)."""
    return logits.gather(1, classes[:, None]).squeeze(1)


@SCORES.register("centred")
def centred(logits: Tensor, classes: Tensor) -> Tensor:
    """f_y - mean_k f_k.

    The softmax does not see what is added to all logits, so the plain logit leaves a way out: the background moves
    into the other logits, and the decision still uses it. The centred logit sees both.
    """
    return logit(logits, classes) - logits.mean(dim=1)


@SCORES.register("log_probability")
def log_probability(logits: Tensor, classes: Tensor) -> Tensor:
    """log p_y: minus the sample's cross-entropy, whose gradient GALS guides (Petryk et al., CVPR 2022)."""
    return logit(F.log_softmax(logits, dim=1), classes)


@SCORES.register("summed_log_probabilities")
def summed_log_probabilities(logits: Tensor, classes: Tensor) -> Tensor:
    """sum_k log p_k, whichever the class: the score of RRR (Ross et al., IJCAI 2017, Eq. 1)."""
    return F.log_softmax(logits, dim=1).sum(dim=1)
