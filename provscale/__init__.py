"""Train on synthetic data with provenance-based input gradient guidance.

Three lines in a loop of one's own (see README):

    step = GuidedStep(network, alpha=0.05)
    sample = CutMix()(Sample.real(images, labels), key=(seed, step_number))
    accelerator.backward(step(sample)["loss"])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from provscale.guidance.loss import classification_loss, guidance_loss
    from provscale.guidance.options import GuidanceOptions
    from provscale.guidance.step import GuidedStep
    from provscale.sample import Sample
    from provscale.synthesis import CutMix, ResizeMix

__all__ = ["CutMix", "GuidanceOptions", "GuidedStep", "ResizeMix", "Sample", "classification_loss", "guidance_loss"]

_HOME = {
    "CutMix": "provscale.synthesis",
    "GuidanceOptions": "provscale.guidance.options",
    "GuidedStep": "provscale.guidance.step",
    "ResizeMix": "provscale.synthesis",
    "Sample": "provscale.sample",
    "classification_loss": "provscale.guidance.loss",
    "guidance_loss": "provscale.guidance.loss",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: `--help` and config errors need no PyTorch."""
    if name not in _HOME:
        raise AttributeError(f"module 'provscale' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
