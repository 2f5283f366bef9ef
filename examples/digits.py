"""Real data for the examples, without a download: handwritten digits (UCI) that come with scikit-learn, a dependency of
`pip install provscale[demo]`; and a network small enough for a CPU."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Batches = DataLoader[tuple[Tensor, ...]]


def loaders(batch_size: int = 50) -> tuple[Batches, Batches]:
    """Images float [B, 1, 16, 16] in [0, 1], and labels [B], 0 to 9: 1000 for training, 797 for testing."""
    images, labels = load_digits(return_X_y=True)
    small = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    pairs = TensorDataset(nn.functional.interpolate(small, size=16, mode="bilinear"), torch.tensor(labels))
    train, test = (torch.utils.data.Subset(pairs, rows) for rows in (range(1000), range(1000, len(pairs))))
    return DataLoader(train, batch_size, shuffle=True), DataLoader(test, batch_size)


def small_network() -> nn.Module:
    """Three convolutions; without BatchNorm, so that it trains alike on any number of processes."""
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GELU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 2 * 2, 10))


def numbers(losses: dict[str, Tensor]) -> dict[str, float]:
    """A step's losses without their history, for a log."""
    return {name: value.detach().item() for name, value in losses.items()}


@torch.no_grad()
def accuracy(network: nn.Module, loader: Batches, device: torch.device | str) -> float:
    """Share of images whose class is right, in percent."""
    right = [network(images.to(device)).argmax(dim=1).cpu() == labels for images, labels in loader]
    return 100 * torch.cat(right).float().mean().item()
