"""Networks by name: registered ones, and every timm model."""

from provscale.models.build import MODELS, BuiltModel, build_model
from provscale.models.instance_scores import logits_and_instance_scores
from provscale.models.openmmlab import STGCN, PoseC3D
from provscale.models.score_map import logits_and_score_map
from provscale.models.skp import StructuredKeypointPooling

__all__ = [
    "MODELS",
    "STGCN",
    "BuiltModel",
    "PoseC3D",
    "StructuredKeypointPooling",
    "build_model",
    "logits_and_instance_scores",
    "logits_and_score_map",
]
