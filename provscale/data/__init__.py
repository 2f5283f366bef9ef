"""Data sets, and how their items become batches."""

from provscale.data.images import (
    cub,
    cub_classification,
    embedded,
    folder,
    iwildcam,
    waterbirds,
)  # registers the data sets
from provscale.data.skeletons import planted_actions, ucf101
from provscale.data.splits import DATA_SETS, DataSplits
from provscale.data.validation import build_splits

__all__ = [
    "DATA_SETS",
    "DataSplits",
    "build_splits",
    "cub",
    "cub_classification",
    "embedded",
    "folder",
    "iwildcam",
    "planted_actions",
    "ucf101",
    "waterbirds",
]
