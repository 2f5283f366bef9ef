"""Networks by name: registered ones, and every timm model."""

from provscale.models.build import MODELS, BuiltModel, build_model
from provscale.models.openmmlab import STGCN, PoseC3D
from provscale.models.skp import StructuredKeypointPooling

__all__ = [
    "MODELS",
    "STGCN",
    "BuiltModel",
    "PoseC3D",
    "StructuredKeypointPooling",
    "build_model",
]
