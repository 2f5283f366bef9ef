"""PoseC3D and ST-GCN of MMAction2 on the skeleton inputs of this project, as `model.name` posec3d and stgcn.

B clips, P persons, F frames, V = 17 COCO keypoints, E = 3V elements: x, y, confidence of each keypoint in turn; x and y
from -1 to 1 over the frame, confidence 0 = missing. H x W cells of a heatmap, K classes.

Both networks see differentiable functions of these elements, so input gradient and provenance mask stay on the
skeleton: [B, P, F, E]. OpenMMLab is imported when a network is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from provscale.data.skeletons.tubes import UCF101_RESOLUTION
from provscale.errors import UserError
from provscale.models.build import MODELS
from provscale.openmmlab import require_openmmlab

KEYPOINTS = 17
MIN_CONFIDENCE = 1e-4
"""Below it a keypoint is missing, as in MMAction2's GeneratePoseTarget."""


class SkeletonNetwork(nn.Module):
    """A backbone and a head of MMAction2, named as in its checkpoints: `backbone`, `cls_head`."""

    def __init__(self, name: str, backbone: dict[str, Any], head: dict[str, Any]) -> None:
        """Builds both from MMAction2's config dicts. Raises UserError when OpenMMLab is not installed."""
        super().__init__()
        self.name = name
        require_openmmlab(f"model.name: {name}")
        from mmaction.registry import MODELS as PARTS
        from mmengine.logging import MMLogger
        from mmengine.registry import DefaultScope

        # Importing registers the networks.
        import mmaction.models  # isort: skip  # noqa: F401

        with DefaultScope.overwrite_default_scope("mmaction"):
            self.backbone = PARTS.build(backbone)
            self.cls_head = PARTS.build(head)
        # It logs a paragraph for every parameter.
        logger = MMLogger.get_current_instance()
        level = logger.level
        logger.setLevel("WARNING")
        self.backbone.init_weights()
        self.cls_head.init_weights()
        logger.setLevel(level)

    def forward(self, inputs: Tensor) -> Tensor:
        """Skeletons [B, P, F, E] to logits [B, K]."""
        raise NotImplementedError

    def keypoints(self, inputs: Tensor) -> Tensor:
        """[B, P, F, V, 3]. Raises UserError for inputs of another shape."""
        if inputs.dim() != 4 or inputs.shape[3] != 3 * KEYPOINTS:
            raise UserError(
                f"model.name: {self.name} got inputs of shape {list(inputs.shape)}; it needs skeletons "
                f"[B, P, F, {3 * KEYPOINTS}], {KEYPOINTS} keypoints of x, y and confidence; choose a skeleton data set"
            )
        return inputs.unflatten(3, (KEYPOINTS, 3))

    def logits_and_instance_scores(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and those of every skeleton [B, P, F, K]: of a clip with this person alone, in all its frames.

        Neither network scores single skeletons by itself; this is our way to ask it. Skeletons that are not there get
        zeros.
        """
        present = (self.keypoints(inputs)[..., 2] >= MIN_CONFIDENCE).any(dim=3)
        # One person of all clips at a time keeps the memory that of the clip itself.
        alone = torch.stack([self(inputs[:, row : row + 1]) for row in range(inputs.shape[1])], dim=1)
        return self(inputs), torch.where(present[..., None], alone[:, :, None], 0.0)


@MODELS.register("stgcn")
class STGCN(SkeletonNetwork):
    """ST-GCN (Yan et al., AAAI 2018) as in MMAction2's `stgcn_8xb16-joint-u100-80e_ntu60-xsub-keypoint-2d`.

    It sees x, y from -1 to 1 and confidence, as MMAction2's PreNormalize2D gives them, and averages over the P persons.

    Args:
        num_classes: K.
        dropout: of the head.
        options: further arguments of MMAction2's STGCN, e.g. `num_stages`, `base_channels`.
    """

    def __init__(self, num_classes: int, dropout: float = 0.0, **options: Any) -> None:
        backbone: dict[str, Any] = {"type": "STGCN", "graph_cfg": {"layout": "coco", "mode": "stgcn_spatial"}} | options
        stages, inflate = backbone.get("num_stages", 10), backbone.get("inflate_stages", [5, 8])
        width = backbone.get("base_channels", 64) * backbone.get("ch_ratio", 2) ** sum(s <= stages for s in inflate)
        head = {"type": "GCNHead", "num_classes": num_classes, "in_channels": int(width), "dropout": dropout}
        super().__init__("stgcn", backbone, head)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.cls_head(self.backbone(self.keypoints(inputs)))


@MODELS.register("posec3d")
class PoseC3D(SkeletonNetwork):
    """PoseC3D (Duan et al., CVPR 2022) as in MMAction2's `slowonly_r50_8xb16-u48-240e_ntu60-xsub-keypoint`.

    Skeletons become heatmap volumes [B, V, F, H, W] by `compact_boxes` and `heatmap_volume`, which follow MMAction2's
    PoseCompact and GeneratePoseTarget: its checkpoints see what they were trained on.

    Args:
        num_classes: K.
        heatmap_size: H = W; MMAction2 trains with 56 and tests with 64.
        sigma: width of a keypoint in cells.
        frame_size: height and width in pixels of the frame that -1 to 1 spans.
        dropout: of the head.
        options: further arguments of MMAction2's ResNet3dSlowOnly, e.g. `base_channels`, `stage_blocks`.
    """

    def __init__(
        self,
        num_classes: int,
        heatmap_size: int = 56,
        sigma: float = 0.6,
        frame_size: Sequence[int] = UCF101_RESOLUTION,
        dropout: float = 0.5,
        **options: Any,
    ) -> None:
        if heatmap_size < 1 or sigma <= 0 or len(frame_size) != 2 or min(frame_size) < 1:
            raise UserError(
                f"model.options: heatmap_size {heatmap_size}, sigma {sigma}, frame_size {list(frame_size)}; sizes must "
                "be at least 1, sigma above 0, frame_size two numbers (height, width)"
            )
        backbone: dict[str, Any] = {
            "type": "ResNet3dSlowOnly", "depth": 50, "pretrained": None, "in_channels": KEYPOINTS, "base_channels": 32,
            "num_stages": 3, "out_indices": (2,), "stage_blocks": (4, 6, 3), "conv1_stride_s": 1, "pool1_stride_s": 1,
            "inflate": (0, 1, 1), "spatial_strides": (2, 2, 2), "temporal_strides": (1, 1, 2), "dilations": (1, 1, 1),
        } | options  # fmt: skip
        expansion = 4 if backbone["depth"] >= 50 else 1  # bottleneck or basic blocks
        width = backbone["base_channels"] * 2 ** (backbone["num_stages"] - 1) * expansion
        head = {"type": "I3DHead", "num_classes": num_classes, "in_channels": width, "dropout_ratio": dropout}
        super().__init__("posec3d", backbone, head)
        self.heatmap_size = heatmap_size
        self.sigma = sigma
        self.frame_size = tuple(frame_size)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.cls_head(self.backbone(self.volume(inputs)))

    def volume(self, inputs: Tensor) -> Tensor:
        """Heatmaps [B, V, F, H, W] of skeletons [B, P, F, E]."""
        keypoints = self.keypoints(inputs)
        height, width = self.frame_size
        pixels = (keypoints[..., :2] + 1) / 2 * keypoints.new_tensor([width, height])
        boxes = compact_boxes(pixels, keypoints[..., 2], self.frame_size)[:, None, None, None]
        cells = (pixels - boxes[..., :2]) * (self.heatmap_size / (boxes[..., 2:] - boxes[..., :2]))
        return heatmap_volume(cells, keypoints[..., 2], self.heatmap_size, self.sigma)


@torch.no_grad()
def compact_boxes(
    pixels: Tensor, confidence: Tensor, frame_size: Sequence[int], padding: float = 0.25, threshold: float = 10
) -> Tensor:
    """The square around all keypoints of a clip, as MMAction2's PoseCompact with `hw_ratio=1` finds it.

    Its corners are whole pixels, hence constant for small changes of the keypoints: no gradient passes through them.

    Args:
        pixels: [B, P, F, V, 2].
        confidence: [B, P, F, V]; keypoints below `MIN_CONFIDENCE` do not count.
        frame_size: (height, width); the box of a clip whose keypoints span less than `threshold` pixels is the frame.
        padding: share by which the extent grows.

    Returns:
        [B, 4] xyxy in pixels; may lie partly outside the frame.
    """
    there = (confidence >= MIN_CONFIDENCE)[..., None]
    low = pixels.where(there, torch.inf).flatten(1, 3).amin(dim=1)
    high = pixels.where(there, -torch.inf).flatten(1, 3).amax(dim=1)
    # Square: the longer side decides.
    half = ((high - low) / 2 * (1 + padding)).amax(dim=1, keepdim=True)
    center = (high + low) / 2
    boxes = torch.cat([center - half, center + half], dim=1).trunc()
    large = (high - low >= threshold).all(dim=1, keepdim=True)
    height, width = frame_size
    return boxes.where(large, pixels.new_tensor([0, 0, width, height]))


def heatmap_volume(cells: Tensor, confidence: Tensor, size: int, sigma: float) -> Tensor:
    """Gaussians around keypoints with confidence as height, the highest of all persons in each cell.

    As MMAction2's GeneratePoseTarget: each Gaussian ends at 3 sigma, keypoints below `MIN_CONFIDENCE` leave nothing.
    Twice differentiable in `cells` and `confidence`; the ends and the choice of the person are constant.

    Args:
        cells: [B, P, F, V, 2], x and y in cells.
        confidence: [B, P, F, V].
        size: H = W.
        sigma: in cells.

    Returns:
        [B, V, F, H, W], dtype of `cells`.
    """
    grid = torch.arange(size, device=cells.device, dtype=cells.dtype)
    centers = cells[..., None]
    first = (centers - 3 * sigma).detach().trunc().clamp(min=0)
    end = (centers + 3 * sigma).detach().trunc() + 1
    bell = torch.exp(-((grid - centers) ** 2) / (2 * sigma**2))
    # [B, P, F, V, 2, size]; far away keypoints underflow to zero, also in the gradient.
    bell = bell * ((grid >= first) & (grid < end))
    peak = confidence * (confidence >= MIN_CONFIDENCE)
    columns, rows = bell[..., 0, :], bell[..., 1, :] * peak[..., None]
    return (rows[..., :, None] * columns[..., None, :]).amax(dim=1).transpose(1, 2)
