"""Masks of one's own instead of provenance: real images, and where in them the object is (drawn, or by a segmenter).

python examples/own_masks.py
"""

from __future__ import annotations

from dataclasses import replace

import torch
from digits import accuracy, loaders, numbers, small_network
from torch import Tensor
from torch.nn.functional import max_pool2d

from provscale import GuidedStep, Sample

EPOCHS, ALPHA, SEED = 3, 0.05, 0


def with_masks(images: Tensor, labels: Tensor, masks: Tensor) -> Sample:
    """A sample of which every image is guided: the gradient of its class is suppressed where `masks` [B, 1, H, W] is 0.

    An image without a mask gets `is_synthetic` False: it is classified, and not guided.
    """
    everyone = torch.ones(len(images), dtype=torch.bool, device=images.device)
    return replace(Sample.real(images, labels), provenance_mask=masks, is_synthetic=everyone, guided=True)


def main() -> list[dict[str, float]]:
    torch.manual_seed(SEED)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = small_network()
    step = GuidedStep(network, alpha=ALPHA).to(device)
    optimizer = torch.optim.AdamW(step.parameters(), lr=0.008)
    train, test = loaders()
    rows = []
    for epoch in range(EPOCHS):
        for images, labels in train:
            # Stands for the masks of one's own: the ink and two pixels around it, as what tells digits apart is also
            # where there is no ink (docs/method.md, finding 1).
            masks = max_pool2d((images > 0.2).float(), kernel_size=5, stride=1, padding=2)
            losses = step(with_masks(images.to(device), labels.to(device), masks.to(device)))
            losses["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            rows.append(numbers(losses))
        print(f"epoch {epoch + 1}:", "  ".join(f"{name} {value:.3f}" for name, value in rows[-1].items()))
    print(f"test accuracy {accuracy(network, test, device):.1f} %")
    return rows


if __name__ == "__main__":
    main()
