"""Is OpenMMLab there, and does it run? `python -m provscale.data.skeletons.hrnet.installed` tries it."""

from __future__ import annotations

import importlib.util
import sys
import warnings

from provscale.errors import UserError

MODULES = ("mmengine", "mmcv", "mmpose", "mmaction", "xtcocotools")
INSTALL = "bash tools/install_openmmlab.sh PATH/OF/python"


def missing_modules() -> list[str]:
    """Those of `MODULES` that are not installed; nothing is imported."""
    return [name for name in MODULES if importlib.util.find_spec(name) is None]


def require_openmmlab(purpose: str) -> None:
    """Raises UserError when a module is missing; `purpose` (a config key and value, or a tool) begins the message."""
    if missing := missing_modules():
        raise UserError(f"{purpose}: needs OpenMMLab ({', '.join(missing)} not installed); run {INSTALL}")
    # They warn about optional parts (compiled operations, other detectors) that are not used here.
    for module in ("mmcv", "mmengine", "mmpose", "mmaction"):
        warnings.filterwarnings("ignore", module=rf"{module}\.")


def try_networks() -> str:
    """HRNet on a gray image, and both derivatives of ST-GCN and PoseC3D; a line of what ran. Weights are random."""
    import numpy as np
    import torch

    from provscale.data.skeletons.hrnet.pose import PoseEstimator
    from provscale.models.openmmlab import STGCN, PoseC3D

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


if __name__ == "__main__":
    try:
        require_openmmlab("provscale.data.skeletons.hrnet")
    except UserError as error:
        sys.exit(f"error: {error}")
    print(try_networks())
