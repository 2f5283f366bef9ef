"""Data sets, and how their items become batches."""

from provscale.data import embedded, folder, planted_actions, ucf101  # registers the data sets
from provscale.data.base import DATA_SETS, DataSplits

__all__ = ["DATA_SETS", "DataSplits", "embedded", "folder", "planted_actions", "ucf101"]
