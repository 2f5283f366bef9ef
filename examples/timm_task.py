"""Guidance as one of timm's training tasks: `forward(input, target)` returns a dictionary with the loss.

python examples/timm_task.py
"""

from __future__ import annotations

import torch
from digits import accuracy, loaders, numbers, small_network
from timm.optim import create_optimizer_v2
from timm.task import TrainingTask
from torch import Tensor, nn

from provscale import CutMix, GuidedStep, Sample

EPOCHS, ALPHA, SEED = 3, 0.05, 0


class GuidedTask(TrainingTask):
    """CutMix and Eq. 1. There is no `output`: the logits are of mixed images, so nothing is measured on them."""

    def __init__(self, network: nn.Module, alpha: float, seed: int, device: torch.device) -> None:
        super().__init__(device=device)
        self.trainable_module = GuidedStep(network, alpha=alpha).to(device)  # what DDP wraps
        self.eval_model = network  # what is evaluated and saved
        self.cutmix, self.seed, self.number = CutMix(), seed, 0

    def prepare_distributed(self, device_ids: list[int] | None = None, **ddp: object) -> GuidedTask:
        self.trainable_module = nn.parallel.DistributedDataParallel(self.trainable_module, device_ids, **ddp)
        return self

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        self.number += 1
        return self.trainable_module(self.cutmix(Sample.real(input, target), key=(self.seed, self.number)))


def main() -> list[dict[str, float]]:
    torch.manual_seed(SEED)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = GuidedTask(small_network(), ALPHA, SEED, device)
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt="adamw", lr=0.008)
    train, test = loaders()
    rows = []
    for epoch in range(EPOCHS):
        for images, labels in train:
            result = task(images.to(device), labels.to(device))
            result["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            rows.append(numbers(result))
        print(f"epoch {epoch + 1}:", "  ".join(f"{name} {value:.3f}" for name, value in rows[-1].items()))
    print(f"test accuracy {accuracy(task.get_eval_model(), test, device):.1f} %")
    return rows


if __name__ == "__main__":
    main()
