"""A small VGG-like network for the embedded tasks: one without shortcuts, and without normalisation if asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from provscale.errors import UserError
from provscale.models.build import MODELS


@MODELS.register("plain_cnn")
class PlainCNN(nn.Module):
    """3x3 convolutions with ReLU, global average pooling, one linear layer: images [B, 3, H, W] to logits [B, K].

    Convolutions start as in He et al. (ICCV 2015), as VGG's do in torchvision. Named like a timm network
    (`forward_features`, `forward_head`, `get_classifier`), so it gives class activation maps (Zhou et al., CVPR 2016).

    Args:
        num_classes: K.
        widths: output channels of each convolution.
        strides: stride of each convolution.
        norm: `batch` normalises after each convolution, which then has no bias of its own.

    Raises:
        UserError: widths and strides of different lengths, none of them, or a number below 1.
    """

    def __init__(
        self,
        num_classes: int,
        widths: Sequence[int] = (16, 32, 32, 64, 64),
        strides: Sequence[int] = (1, 2, 1, 2, 1),
        norm: Literal["batch", "none"] = "batch",
    ) -> None:
        super().__init__()
        if not widths or len(widths) != len(strides) or min(*widths, *strides) < 1:
            raise UserError(
                f"model.options: widths {list(widths)} and strides {list(strides)} of plain_cnn must be equally many "
                "whole numbers from 1"
            )
        layers: list[nn.Module] = []
        channels = 3
        for width, stride in zip(widths, strides, strict=True):
            convolution = nn.Conv2d(channels, width, 3, stride, padding=1, bias=norm == "none")
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)
            layers += [convolution, *([nn.BatchNorm2d(width)] if norm == "batch" else []), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def get_classifier(self) -> nn.Linear:
        return self.classifier

    def forward_features(self, inputs: Tensor) -> Tensor:
        """Feature maps [B, C, H', W']."""
        return self.features(inputs)

    def forward_head(self, features: Tensor) -> Tensor:
        """Logits [B, K]."""
        return self.classifier(features.mean(dim=(2, 3)))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(inputs))
