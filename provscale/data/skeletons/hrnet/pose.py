"""MMPose's HRNet-W32 (COCO, 256 x 192, top-down heatmaps) on person boxes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from provscale.data.skeletons.hrnet.weights import HRNET_FILE, load_into, load_named_weights
from provscale.openmmlab import require_openmmlab

KEYPOINTS = 17
CONFIG = "body_2d_keypoint/topdown_heatmap/coco/td-hm_hrnet-w32_8xb64-210e_coco-256x192.py"


class PoseEstimator:
    """Keypoints of the person in each box, by the installed MMPose's own config, transforms and decoder.

    The box is padded by 1.25 and widened to 3:4, cropped to 192 x 256, the peaks of the 48 x 64 heatmaps (shifted by
    a quarter cell towards the second highest neighbour) go back through the crop.

    Attributes:
        network: MMPose's `TopdownPoseEstimator`, in evaluation mode.
    """

    def __init__(self, weights: Path | None, device: torch.device, flip: bool = True) -> None:
        """Builds the network.

        Args:
            weights: MMPose checkpoint; None leaves random weights (for measuring speed).
            device: where it runs.
            flip: average with the heatmaps of the mirrored crop, as the config does; twice the time.

        Raises:
            UserError: OpenMMLab is not installed, or the weights are another network's.
        """
        require_openmmlab("skeleton extraction")
        import mmpose
        from mmengine.config import Config
        from mmengine.dataset import Compose, pseudo_collate
        from mmpose.apis import init_model

        config = Config.fromfile(Path(mmpose.__file__).parent / ".mim" / "configs" / CONFIG)
        config.model.test_cfg.flip_test = flip
        self.network = init_model(config, None, device=str(device))
        if weights is not None:
            tensors = load_named_weights(weights, "--weights")
            load_into(self.network, tensors, weights, "--weights", HRNET_FILE)
        self._prepare = Compose(config.test_dataloader.dataset.pipeline)
        self._collate = pseudo_collate

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray], boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Runs one batch.

        Args:
            images: for each box the frame it lies in, uint8 [H, W, 3] BGR.
            boxes: float32 [n, 4] xyxy in pixels.

        Returns:
            float32 [n, 17, 2] x and y in pixels of the frame (COCO's order of keypoints), and float32 [n, 17] the
            heights of the peaks, about [0, 1]. A keypoint may lie outside its box.
        """
        samples = [
            self._prepare(
                {"img": image, "bbox": box[None], "bbox_score": np.ones(1, np.float32)} | self.network.dataset_meta
            )
            for image, box in zip(images, boxes, strict=True)
        ]
        found = [result.pred_instances for result in self.network.test_step(self._collate(samples))]
        keypoints = np.concatenate([np.asarray(instance.keypoints) for instance in found])
        scores = np.concatenate([np.asarray(instance.keypoint_scores) for instance in found])
        return keypoints.astype(np.float32), scores.astype(np.float32)
