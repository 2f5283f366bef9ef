"""CutMix with guidance in a plain PyTorch loop: the loss alone, no engine around the network.

python examples/plain_pytorch.py
"""

from __future__ import annotations

import torch
from digits import accuracy, loaders, numbers, small_network

from provscale import CutMix, Sample, classification_loss, guidance_loss

EPOCHS, ALPHA, SEED = 3, 0.05, 0


def main() -> list[dict[str, float]]:
    torch.manual_seed(SEED)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = small_network().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.008)
    train, test = loaders()
    cutmix, rows = CutMix(), []
    for epoch in range(EPOCHS):
        for number, (images, labels) in enumerate(train):
            sample = cutmix(Sample.real(images.to(device), labels.to(device)), key=(SEED, epoch, number))
            inputs = sample.inputs.requires_grad_()
            logits = network(inputs)
            loss_guidance = guidance_loss(logits, inputs, sample)
            loss_cls = classification_loss(logits, sample)
            loss = loss_cls + ALPHA * loss_guidance  # Eq. 1
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            rows.append(numbers({"loss": loss, "loss_cls": loss_cls, "loss_guidance": loss_guidance}))
        print(f"epoch {epoch + 1}:", "  ".join(f"{name} {value:.3f}" for name, value in rows[-1].items()))
    print(f"test accuracy {accuracy(network, test, device):.1f} %")
    return rows


if __name__ == "__main__":
    main()
