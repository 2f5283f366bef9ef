"""Networks by name: registered ones, and every timm model."""

from provscale.models.build import MODELS, BuiltModel, build_model
from provscale.models.deit_sat import DeiTSmallSAT
from provscale.models.openmmlab import STGCN, PoseC3D
from provscale.models.plain_cnn import PlainCNN
from provscale.models.skp import StructuredKeypointPooling
from provscale.models.vgg_cam import VGG16CAM

__all__ = [
    "MODELS",
    "STGCN",
    "VGG16CAM",
    "BuiltModel",
    "DeiTSmallSAT",
    "PlainCNN",
    "PoseC3D",
    "StructuredKeypointPooling",
    "build_model",
]
