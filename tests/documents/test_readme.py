"""The README's snippets run as they are."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from paths import ROOT

README = ROOT / "README.md"


def snippet(marker: str) -> str:
    """The first Python block after the given HTML comment."""
    found = re.search(rf"<!-- {marker} -->\s*```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert found is not None, f"README has no block marked {marker}"
    return found.group(1)


def test_three_lines_in_a_loop_of_ones_own() -> None:
    """Runs the integration snippet on a tiny network: it must train, and train with guidance."""
    from accelerate import Accelerator

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 4),
    )
    before = [parameter.detach().clone() for parameter in network.parameters()]
    images = torch.randn(8, 3, 16, 16)
    data = torch.utils.data.TensorDataset(images, torch.randint(0, 4, (8,)))
    names = {
        "network": network,
        "accelerator": Accelerator(cpu=True),
        "loader": torch.utils.data.DataLoader(data, batch_size=4),
        "optimizer": torch.optim.SGD(network.parameters(), lr=0.1),
        "seed": 0,
    }
    exec(snippet("integration"), names)
    losses = names["losses"]
    assert float(losses["loss_guidance"]) > 0
    assert float(losses["loss"]) == pytest.approx(
        float(losses["loss_cls"]) + 0.05 * float(losses["loss_guidance"]), rel=1e-6
    )
    assert any(not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


def test_functional_form() -> None:
    """The functional snippet's gradient equals that of Eq. 1 written out for a linear network: f_k = w_k . x."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 4, bias=False))
    names = {"network": network, "images": torch.randn(2, 3, 4, 4), "labels": torch.tensor([1, 2]), "F": F}
    exec(snippet("functional"), names)
    weight, sample = network[1].weight, names["sample"]
    # grad f_k of a linear network is w_k, whatever the input.
    mask = sample.provenance_mask.expand(2, 3, 4, 4).flatten(1)
    term = (1 - mask) * weight[sample.targets[:, 0]] + mask * weight[sample.targets[:, 1]]
    expected = term.square().sum(dim=1).mean()
    assert float(names["penalty"]) == pytest.approx(float(expected), rel=1e-5)
