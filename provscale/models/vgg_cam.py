"""`vgg16_cam`: VGG16 whose classifier is a convolution, average pooling and one linear layer, for localisation.

The network of Choe et al. (CVPR 2020; "VggCam" in their public code wsolevaluation): VGG16's 13 convolutions without
the last pooling, then

    g = ReLU(conv6(features(x)))          conv6: 512 -> 1024 channels, 3 x 3
    f_k = b_k + sum_c w_kc mean_ij g_cij
    map_k[i, j] = mean_c w_kc g_cij       class activation map: a mean over channels there, hence also here

B samples, K classes, H x W pixels, h x w cells of the map: H/16 x W/16, 14 x 14 of 224 x 224 pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import vgg

from provscale.errors import UserError
from provscale.models.build import MODELS

FOURTH_POOLING = 23
"""Its place in VGG16's `features`."""


@MODELS.register("vgg16_cam")
class VGG16CAM(nn.Module):
    """Weights are named as in torchvision's and timm's VGG16, whose classifiers have no place here.

    Args:
        num_classes: K.
        map_size: 14, or 28 for a network without the fourth pooling either, whose maps have twice the side.

    Raises:
        UserError: another map size.
    """

    hub_name = "vgg16.tv_in1k"
    new_layers = ("conv6.", "fc.")

    def __init__(self, num_classes: int, map_size: int = 14) -> None:
        super().__init__()
        if map_size not in (14, 28):
            raise UserError(f"model.options.map_size: is {map_size}, must be 14 or 28 (cells a side of 224 pixels)")
        self.features = vgg.make_layers(vgg.cfgs["D"][:-1])
        if map_size == 28:
            self.features[FOURTH_POOLING] = nn.Identity()  # in its place, so that no layer changes its name
        self.conv6 = nn.Conv2d(512, 1024, kernel_size=3, padding=1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(1024, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def feature_maps(self, inputs: Tensor) -> Tensor:
        """g [B, 1024, h, w] of `inputs` [B, 3, H, W]."""
        return self.relu(self.conv6(self.features(inputs)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, K]."""
        return self.fc(self.feature_maps(inputs).mean(dim=(2, 3)))

    def logits_and_score_map(self, inputs: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and the class activation map [B, h, w] of `classes` int64 [B]."""
        maps = self.feature_maps(inputs)
        weights = self.fc.weight[classes].to(maps.dtype)
        return self.fc(maps.mean(dim=(2, 3))), torch.einsum("bchw,bc->bhw", maps, weights) / maps.shape[1]
