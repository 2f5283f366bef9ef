"""Data sets, and how their items become batches."""

from provscale.data.base import DATA_SETS, DataSplits
from provscale.data.images import embedded, folder  # registers the data sets
from provscale.data.skeletons import planted_actions, ucf101

__all__ = ["DATA_SETS", "DataSplits", "embedded", "folder", "planted_actions", "ucf101"]
