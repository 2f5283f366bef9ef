"""Train on synthetic data with provenance-based input gradient guidance.

Three lines in a loop of one's own (see README):

    step = GuidedStep(network, alpha=0.05)
    sample = CutMix()(Sample.real(images, labels), key=(seed, step_number))
    accelerator.backward(step(sample)["loss"])
"""

from provscale.guidance import GuidedStep, classification_loss, guidance_loss
from provscale.sample import Sample
from provscale.synthesis import CutMix, ResizeMix

__all__ = ["CutMix", "GuidedStep", "ResizeMix", "Sample", "classification_loss", "guidance_loss"]
