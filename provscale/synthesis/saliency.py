"""Saliency for the syntheses that mix by it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from provscale.sample import Sample
from provscale.synthesis.base import Synthesis

if TYPE_CHECKING:
    from provscale.engine import Engine


def with_saliency(engine: Engine, synthesis: Synthesis, sample: Sample) -> Sample:
    """`sample` with `annotations["saliency"]` [B, 1, H, W] if the synthesis needs it, of the network in eval mode.

    All processes must call it. It costs a forward and a backward pass.
    """
    if not synthesis.needs_saliency:
        return sample
    engine.prepared.eval()
    saliency = engine.predict(sample, frozenset({"saliency"}))["saliency"]
    engine.prepared.train()
    return replace(sample, annotations={**sample.annotations, "saliency": saliency})
