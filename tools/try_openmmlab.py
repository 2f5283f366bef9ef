"""Does the installed OpenMMLab run? tools/install_openmmlab.sh ends with this.

python -m tools.try_openmmlab
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from provscale.data.skeletons.hrnet.pose import PoseEstimator
from provscale.errors import reported
from provscale.models.openmmlab import STGCN, PoseC3D
from provscale.openmmlab import require_openmmlab


def try_networks() -> str:
    """HRNet on a gray image, and both derivatives of ST-GCN and PoseC3D; a line of what ran. Weights are random."""
    estimator = PoseEstimator(None, torch.device("cpu"), flip=False)
    image = np.full((240, 320, 3), 128, dtype=np.uint8)
    keypoints, _ = estimator([image], np.array([[100, 20, 200, 220]], dtype=np.float32))
    assert keypoints.shape == (1, 17, 2)
    assert np.isfinite(keypoints).all()
    inputs = torch.rand(2, 1, 4, 51, requires_grad=True)
    for network in (STGCN(3, num_stages=2, base_channels=4), PoseC3D(3, 16, base_channels=4, stage_blocks=(1, 1, 1))):
        (gradient,) = torch.autograd.grad(network(inputs)[:, 0].sum(), inputs, create_graph=True)
        gradient.square().sum().backward()
        assert inputs.grad is not None
        assert torch.isfinite(inputs.grad).all()
    return "OpenMMLab runs: HRNet forward; ST-GCN and PoseC3D with both derivatives"


def main() -> None:
    require_openmmlab("tools/try_openmmlab.py")
    print(try_networks())


if __name__ == "__main__":
    sys.exit(reported(main))
