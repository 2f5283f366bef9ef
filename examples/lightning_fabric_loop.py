"""CutMix with guidance in a Lightning Fabric loop.

pip install lightning-fabric
python examples/lightning_fabric_loop.py
"""

from __future__ import annotations

import torch
from digits import accuracy, loaders, numbers, small_network
from lightning_fabric import Fabric

from provscale import CutMix, GuidedStep, Sample

EPOCHS, ALPHA, SEED = 3, 0.05, 0


def main() -> list[dict[str, float]]:
    torch.manual_seed(SEED)
    fabric = Fabric(accelerator="auto", devices=1)  # more devices: strategy="ddp", and fabric.launch()
    train, test = loaders()
    network = small_network()
    step = GuidedStep(network, alpha=ALPHA)
    step, optimizer = fabric.setup(step, torch.optim.AdamW(step.parameters(), lr=0.008))
    train = fabric.setup_dataloaders(train)
    cutmix, rows = CutMix(), []
    for epoch in range(EPOCHS):
        for number, (images, labels) in enumerate(train):
            losses = step(cutmix(Sample.real(images, labels), key=(SEED, epoch, number, fabric.global_rank)))
            fabric.backward(losses["loss"])
            optimizer.step()
            optimizer.zero_grad()
            rows.append(numbers(losses))
        fabric.print(f"epoch {epoch + 1}:", "  ".join(f"{name} {value:.3f}" for name, value in rows[-1].items()))
    fabric.print(f"test accuracy {accuracy(network, test, fabric.device):.1f} %")
    return rows


if __name__ == "__main__":
    main()
