"""Skeleton sequences: clips, tracks, tubes, and the data sets made of them."""
