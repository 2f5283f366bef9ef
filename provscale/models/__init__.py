"""Networks by name: registered ones, and every timm model."""

from provscale.models.build import MODELS, BuiltModel, build_model
from provscale.models.score_map import logits_and_score_map

__all__ = ["MODELS", "BuiltModel", "build_model", "logits_and_score_map"]
