"""CutMix with guidance in an Accelerate loop, which also runs under DDP, DeepSpeed ZeRO-1 and ZeRO-2.

python examples/accelerate_loop.py
accelerate launch --config_file launch/cpu/ddp.yaml examples/accelerate_loop.py
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from digits import accuracy, loaders, numbers, small_network

from provscale import CutMix, GuidedStep, Sample

EPOCHS, ALPHA, SEED = 3, 0.05, 0


def main() -> list[dict[str, float]]:
    torch.manual_seed(SEED)
    accelerator = Accelerator()
    train, test = loaders()
    network = small_network()
    step = GuidedStep(network, alpha=ALPHA)
    optimizer = torch.optim.AdamW(step.parameters(), lr=0.008)
    step, optimizer, train = accelerator.prepare(step, optimizer, train)
    cutmix, rows = CutMix(), []
    for epoch in range(EPOCHS):
        for number, (images, labels) in enumerate(train):
            key = (SEED, epoch, number, accelerator.process_index)  # each process mixes in its own way
            losses = step(cutmix(Sample.real(images, labels), key=key))
            accelerator.backward(losses["loss"])
            optimizer.step()
            optimizer.zero_grad()
            rows.append(numbers(losses))
        accelerator.print(f"epoch {epoch + 1}:", "  ".join(f"{name} {value:.3f}" for name, value in rows[-1].items()))
    accelerator.print(f"test accuracy {accuracy(network, test, accelerator.device):.1f} %")
    accelerator.end_training()
    return rows


if __name__ == "__main__":
    main()
