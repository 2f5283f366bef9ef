"""Small networks and batches that several tests share."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.models import vgg

from provscale.models import VGG16CAM, DeiTSmallSAT
from provscale.sample import Sample

# Tests run side by side on shared machines, where a second thread costs more than it brings (`make test-kernels` asks
# for two, because they add in another order).
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

CLASSES = 5


def small_cnn() -> nn.Module:
    """Convolutions, BatchNorm, ReLU, pooling, linear; no bias before BatchNorm, whose gradient would be rounding."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, CLASSES),
    )  # fmt: skip


def small_vit() -> nn.Module:
    """timm's ViT with two blocks on 16 tokens."""
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=CLASSES, img_size=32, patch_size=8, depth=2)


def small_sat(**options: Any) -> DeiTSmallSAT:
    """The network with a localisation token, with two of three blocks masked; 32 x 32 pixels, 2 x 2 patches.

    Weights are larger than at the start, so that attention and foreground differ between tokens.
    """
    torch.manual_seed(0)
    small = {"img_size": 32, "embed_dim": 24, "depth": 3, "num_heads": 3, "masked_blocks": 2, "drop_path_rate": 0.3}
    network = DeiTSmallSAT(**{"num_classes": CLASSES, **small, **options})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def small_vgg_cam() -> VGG16CAM:
    """`vgg16_cam` with a sixteenth of its channels; 2 x 2 cells of 32 x 32 pixels."""
    torch.manual_seed(0)
    network = VGG16CAM(CLASSES)
    network.features = vgg.make_layers(
        [width if isinstance(width, str) else width // 16 for width in vgg.cfgs["D"][:-1]]
    )
    network.conv6, network.fc = nn.Conv2d(32, 64, kernel_size=3, padding=1), nn.Linear(64, CLASSES)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return network


def smooth_network() -> nn.Module:
    """For 16 x 16 pixels. No BatchNorm and no kink: samples do not interact, every derivative exists."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(100, CLASSES)
    )


class LossesOfItsOwn(nn.Module):
    """A small network with two losses beside its logits: of its features' size and of their spread, both weighted.

    In evaluation it returns logits alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 5, stride=4), nn.SiLU(), nn.Conv2d(6, 8, 3), nn.Tanh())
        self.head = nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        features = self.features(inputs)
        logits = self.head(features.mean(dim=(2, 3)))
        if not self.training:
            return logits
        size = features.square().mean()
        spread = (features - features.mean(dim=(2, 3), keepdim=True)).square().mean()
        return logits, {"loss_size": 0.3 * size, "loss_spread": -0.2 * spread}


def losses_of_its_own() -> nn.Module:
    torch.manual_seed(0)
    return LossesOfItsOwn()


def random_sample(
    targets: int = 1, size: int = 16, batch: int = 4, real: Iterable[int] = (), levels: int = 2, seed: int = 0
) -> Sample:
    """A batch [B, 3, size, size] with random inputs, classes and masks.

    Args:
        targets: 1 = hard labels, 2 = soft ones.
        real: rows that are no synthetic samples.
        levels: number of mask values; 2 gives {0, 1}, 3 gives {0, 1/2, 1}.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    sample = Sample.real(torch.randn(batch, 3, size, size, generator=generator), draw(CLASSES, batch))
    sample.targets = draw(CLASSES, batch, targets)
    sample.provenance_mask = draw(levels, batch, 1, size, size) / (levels - 1)
    sample.is_synthetic = torch.tensor([row not in set(real) for row in range(batch)])
    sample.guided = bool(sample.is_synthetic.any())
    if targets == 2:
        sample.mixing_weight = sample.provenance_mask.mean(dim=(1, 2, 3))
    return sample


def as_float64(sample: Sample) -> Sample:
    return sample.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def assert_rounds_alike(found: Tensor, expected: Tensor, exact: Tensor) -> None:
    """Two computations in one precision are equally far from float64: neither keeps more bits, nor loses more.

    Their distance from each other would not do as a bound: it is a matter of the processor's kernels.
    """
    error, usual = relative(found, exact), relative(expected, exact)
    assert 0 < usual / 1.5 < error < 1.5 * usual, (error, usual)


def relative(found: Tensor, expected: Tensor) -> float:
    """|| found - expected || / || expected ||."""
    difference = (found.double() - expected.double()).norm()
    return float(difference / expected.double().norm())
