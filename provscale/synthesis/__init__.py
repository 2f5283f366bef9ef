"""Syntheses: inputs and their provenance, made together."""

from provscale.config import SynthesisConfig
from provscale.options import build_part
from provscale.synthesis.ablation import random_mask
from provscale.synthesis.annotated import Annotated
from provscale.synthesis.base import SYNTHESES, Key, Mixing, Synthesis, neighbours
from provscale.synthesis.batchmix import BatchMix
from provscale.synthesis.cutmix import CutMix
from provscale.synthesis.edited import Edited
from provscale.synthesis.puzzlemix import PuzzleMix
from provscale.synthesis.resizemix import ResizeMix

__all__ = [
    "SYNTHESES",
    "Annotated",
    "BatchMix",
    "CutMix",
    "Edited",
    "Key",
    "Mixing",
    "PuzzleMix",
    "ResizeMix",
    "Synthesis",
    "build_synthesis",
    "neighbours",
    "random_mask",
]


def build_synthesis(config: SynthesisConfig) -> Synthesis:
    """The synthesis a config asks for. Raises UserError: unknown name, or an option that cannot be used."""
    return build_part(SYNTHESES, config.name, config.options)
