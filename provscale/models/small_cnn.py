"""A network of five convolutions that trains on a CPU in seconds."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from provscale.models.build import MODELS

WIDTHS = (16, 32, 32, 64, 64)
STRIDES = (1, 2, 1, 2, 1)


@MODELS.register("small_cnn")
class SmallCNN(nn.Module):
    """Five 3 x 3 convolutions, each with BatchNorm and ReLU, global average pooling and a linear layer.

    70 thousand parameters; the last feature map has a quarter of the input's height and width. It has timm's methods
    `forward_features`, `forward_head` and `get_classifier`, so class activation maps are read from it as from any
    timm network.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels = 3
        for width, stride in zip(WIDTHS, STRIDES, strict=True):
            convolution = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            blocks += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def get_classifier(self) -> nn.Linear:
        return self.classifier

    def forward_features(self, inputs: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 64, ceil(H / 4), ceil(W / 4)]."""
        return cast(Tensor, self.features(inputs))

    def forward_head(self, features: Tensor) -> Tensor:
        """[B, 64, h, w] -> logits [B, K]."""
        return cast(Tensor, self.classifier(features.mean(dim=(2, 3))))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(inputs))
