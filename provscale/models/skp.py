"""SKP, the point network for skeletons: Structured Keypoint Pooling (Hachiuma et al., CVPR 2023).

B clips, P person slots, F frames, V keypoints, S = P x F skeletons, N points that are there, D = `width`, K classes.

    points [N, 5] -> MLP -> [N, D] -> blocks -> max over each skeleton, and over the clip -> [S, 2D]
    -> blocks -> with their max over the clip -> [S, 4D] -> blocks -> max over the clip -> norm, linear -> [B, K]

Missing keypoints (confidence 0) can reach neither the logits nor the statistics of BatchNorm, which are those of a list
of real points, whatever clip they come from. Two ways give the same numbers: `packed` leaves them out before the first
layer, which computes least, but in shapes that depend on the data; `masked` computes every slot in fixed shapes, which
an executor can record, and without a number that the host has to wait for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from provscale.errors import UserError
from provscale.models.build import MODELS
from provscale.second_derivatives.masked_norm import MaskedBatchNorm1d
from provscale.second_derivatives.set_maximum import SetMaximum

Missing = Literal["auto", "packed", "masked"]


class PointLayers(nn.Sequential):
    """Layers on a list [N, C]; with `present` [N] (bool), rows that are not there reach no statistics."""

    def forward(self, inputs: Tensor, present: Tensor | None = None) -> Tensor:
        for layer in self:
            selects = present is not None and isinstance(layer, (PointLayers, MLPBlock, MaskedBatchNorm1d))
            inputs = layer(inputs, present) if selects else layer(inputs)
        return inputs


class MLPBlock(nn.Module):
    """Residual block on a list of points or skeletons: [N, C] -> [N, C], hidden width `expansion` x C."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * channels
        self.layers = PointLayers(
            nn.Linear(channels, hidden, bias=False),
            MaskedBatchNorm1d(hidden),
            nn.GELU(),
            nn.Linear(hidden, channels, bias=False),
            MaskedBatchNorm1d(channels),
        )
        self.activation = nn.GELU()

    def forward(self, inputs: Tensor, present: Tensor | None = None) -> Tensor:
        return self.activation(inputs + self.layers(inputs, present))


@MODELS.register("skp")
class StructuredKeypointPooling(nn.Module):
    """Logits of a clip, and, by pooling switching, of every skeleton in it.

    The authors published no code. From their papers: the five features of a point, widths 256, 512, 1024 = D, 2D, 4D,
    expansion 2, BatchNorm, GELU, and where features are pooled. Our choices: one block of each width (`repeats`),
    residual blocks of two linear layers, one linear layer before the first block, time and keypoint index as numbers
    from -1 to 1, and LayerNorm before the classifier: maxima are all positive and much alike, and at the published
    learning rate a linear layer on them diverges.

    Args:
        num_classes: K.
        keypoints: V; 17 for COCO.
        width: D.
        repeats: number of blocks of widths D, 2D and 4D. With 24 classes [1, 1, 1] has 5.5 million parameters,
            [13, 13, 13] has 71.7, the size that the authors state in their later paper (about 70).
        expansion: hidden width of a block.
        normalize: LayerNorm before the classifier.
        missing: how missing keypoints are kept out: `packed`, `masked`, or `auto`: packed, until an executor that
            records the step asks for fixed shapes.

    Raises:
        UserError: a value that is not positive, not three repeats, or another way.
    """

    def __init__(
        self,
        num_classes: int,
        keypoints: int = 17,
        width: int = 256,
        repeats: Sequence[int] = (1, 1, 1),
        expansion: int = 2,
        normalize: bool = True,
        missing: Missing = "auto",
    ) -> None:
        super().__init__()
        if min(keypoints, width, expansion) < 1:
            raise UserError(
                f"model.options: keypoints {keypoints}, width {width}, expansion {expansion}; each must be at least 1"
            )
        if len(repeats) != 3 or min(repeats) < 0:
            raise UserError(
                f"model.options.repeats: is {list(repeats)}, must be three numbers of blocks, e.g. [1, 1, 1]"
            )
        if missing not in get_args(Missing):
            raise UserError(f"model.options.missing: is '{missing}', must be one of: {', '.join(get_args(Missing))}")
        self.keypoints = keypoints
        self.missing = missing
        self.masked = missing == "masked"
        blocks = [
            [MLPBlock(scale * width, expansion) for _ in range(count)]
            for scale, count in zip((1, 2, 4), repeats, strict=True)
        ]
        embedding = PointLayers(nn.Linear(5, width, bias=False), MaskedBatchNorm1d(width), nn.GELU())
        self.point_layers = PointLayers(embedding, *blocks[0])
        self.skeleton_layers = PointLayers(*blocks[1])
        self.context_layers = PointLayers(*blocks[2])
        norm = nn.LayerNorm(4 * width) if normalize else nn.Identity()
        self.classifier = PointLayers(norm, nn.Linear(4 * width, num_classes))

    def fix_shapes(self, executor: str) -> None:
        """Computes every slot from here on; called by an executor that records a step.

        Raises:
            UserError: the packed way was asked for by name.
        """
        if self.missing == "packed":
            raise UserError(
                f"guidance.executor: is {executor}, which needs fixed shapes, but model.options.missing is packed, "
                "whose shapes depend on the data; set model.options.missing to auto, or guidance.executor to eager"
            )
        self.masked = True

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, K] from `inputs` float [B, P, F, 3V]: x, y and confidence of each keypoint in turn.

        A clip without any keypoint gets the classifier's bias.
        """
        features, present = self.skeleton_features(inputs)
        return self.classifier(pool_clip(features, present))

    def logits_and_instance_scores(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and those of every skeleton [B, P, F, K], where the last max is left out (pooling switching).

        Skeletons that are not there get zeros.
        """
        features, present = self.skeleton_features(inputs)
        scores = self.where_there(self.classifier, features, present, 0.0)
        return self.classifier(pool_clip(features, present)), scores.unflatten(1, inputs.shape[1:3])

    def skeleton_features(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, S, 4D] and which skeletons are there, bool [B, S]; elsewhere lower than every number."""
        points, valid = self.points(inputs)
        own = SetMaximum.apply(self.where_there(self.point_layers, points, valid), 2)
        present = valid.any(dim=2)
        own = self.where_there(self.skeleton_layers, with_context(own), present)
        return self.where_there(self.context_layers, with_context(own), present), present

    def where_there(self, layers: nn.Module, features: Tensor, there: Tensor, fill: float | None = None) -> Tensor:
        """`layers` on the features [..., C] that are `there` (bool [...]); elsewhere `fill`, as in `unpack`."""
        if not self.masked:
            return unpack(layers(features[there]), there, fill)
        places = there[..., None]
        # What is not there may be garbage, or lower than every number, of which the layers would make infinity.
        found = layers(torch.where(places, features, 0.0).flatten(0, -2), there.flatten()).unflatten(0, there.shape)
        return torch.where(places, found, torch.finfo(found.dtype).min if fill is None else fill)

    def points(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Features of every point [B, S, V, 5] (x, y, time, confidence, keypoint), and which are there [B, S, V]."""
        if inputs.dim() != 4 or inputs.shape[3] != 3 * self.keypoints:
            raise UserError(
                f"model.name: skp got inputs of shape {list(inputs.shape)}; it needs skeletons "
                f"[B, P, F, {3 * self.keypoints}], {self.keypoints} keypoints of x, y and confidence; choose a "
                "skeleton data set, or set model.options.keypoints"
            )
        frames = inputs.shape[2]
        given = inputs.unflatten(3, (self.keypoints, 3))
        time = torch.linspace(-1, 1, frames, device=inputs.device, dtype=inputs.dtype)[:, None]
        number = torch.linspace(-1, 1, self.keypoints, device=inputs.device, dtype=inputs.dtype)
        x, y, confidence = given.unbind(dim=4)
        points = torch.stack([x, y, time.expand_as(x), confidence, number.expand_as(x)], dim=4)
        return points.flatten(1, 2), (confidence > 0).flatten(1, 2)


def pool_clip(features: Tensor, present: Tensor) -> Tensor:
    """Max over a clip's skeletons: [B, 4D]; zeros for a clip without any."""
    return torch.where(present.any(dim=1, keepdim=True), SetMaximum.apply(features, 1), 0.0)


def unpack(packed: Tensor, where: Tensor, fill: float | None = None) -> Tensor:
    """A list [N, C] back in its places: [*where.shape, C], elsewhere `fill` (default: lower than every number).

    Args:
        where: bool, with N places that are True.
    """
    low = torch.finfo(packed.dtype).min if fill is None else fill
    places = packed.new_full((*where.shape, packed.shape[1]), low)
    return places.index_put((where,), packed)


def with_context(features: Tensor) -> Tensor:
    """Each skeleton's features beside their maximum over the clip: [B, S, C] -> [B, S, 2C]."""
    return torch.cat([features, SetMaximum.apply(features, 1)[:, None].expand_as(features)], dim=2)
