"""Guidance in every k-th step only, k times as strong."""

from __future__ import annotations


def alpha_at(step: int, alpha: float, every: int) -> float:
    """The weight of L_PG in optimizer step `step` (0-based): alpha * every in steps 0, every, 2 every, ..., else 0.

    The mean over `every` steps is alpha, as in StyleGAN2's lazy R1 regularisation (Karras et al. 2020, appendix B).
    Steps in between cost what an unguided step costs. All micro-batches of one step are treated alike.
    """
    return alpha * every if step % every == 0 else 0.0
