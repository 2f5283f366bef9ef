"""Provenance guidance: the loss (Eq. 1), the step module that engines wrap, and how its inside runs."""

from provscale.guidance.executors import compiled, cuda_graph  # registers executors
from provscale.guidance.executors.base import EXECUTORS
from provscale.guidance.loss import classification_loss, guidance_loss, guidance_penalty, input_gradients
from provscale.guidance.step import PRECISIONS, GuidedStep

__all__ = [
    "EXECUTORS",
    "PRECISIONS",
    "GuidedStep",
    "classification_loss",
    "compiled",
    "cuda_graph",
    "guidance_loss",
    "guidance_penalty",
    "input_gradients",
]
