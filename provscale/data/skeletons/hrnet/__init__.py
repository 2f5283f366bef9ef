"""Skeletons from videos: person boxes, then MMPose's HRNet on each box. Only here and in `models/openmmlab.py` is
OpenMMLab used; it is imported when a network is built, so everything else works without it."""
