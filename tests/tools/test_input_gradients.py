"""tools/input_gradients.py on a linear network, whose input gradients are its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from provscale.sample import Sample
from provscale.synthesis import CutMix, Synthesis
from tools import input_gradients

CLASSES, SIDE = 3, 4
CLASS = torch.tensor([0, 1, 2, 0])
RIVAL = torch.tensor([2, 2, 1, 2])
"""By the biases below, which are far larger than what the inputs add."""


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    linear = nn.Linear(3 * SIDE * SIDE, CLASSES)
    with torch.no_grad():
        linear.bias.copy_(torch.tensor([0.0, 100.0, 200.0]))
    return nn.Sequential(nn.Flatten(), linear)


@pytest.fixture
def sample() -> Sample:
    """Four images of noise; each one's object is its left half."""
    generator = torch.Generator().manual_seed(1)
    made = Sample.real(torch.rand(4, 3, SIDE, SIDE, generator=generator), CLASS)
    mask = torch.zeros(4, 1, SIDE, SIDE)
    mask[..., : SIDE // 2] = 1
    made.annotations = {"object_mask": mask}
    return made


def expected(network: nn.Sequential, positive: Tensor | None, negative: Tensor | None) -> Tensor:
    """Squared weights right of the middle, and all, of the classes' difference."""
    weights = network[1].weight.detach().double().view(CLASSES, 3, SIDE, SIDE)
    gradient = torch.zeros(4, 3, SIDE, SIDE, dtype=torch.float64)
    if positive is not None:
        gradient += weights[positive]
    if negative is not None:
        gradient -= weights[negative]
    square = gradient.square()
    return torch.stack([square[..., SIDE // 2 :].flatten(1).sum(1), square.flatten(1).sum(1)], dim=1)


@pytest.mark.parametrize(
    ("name", "positive", "negative"), [("logit", CLASS, None), ("rival", None, RIVAL), ("margin", CLASS, RIVAL)]
)
def test_energies_are_those_of_the_weights(
    network: nn.Sequential, sample: Sample, name: str, positive: Tensor | None, negative: Tensor | None
) -> None:
    same, region = input_gradients.with_region(sample, Synthesis(), 0)
    assert same is sample
    found = input_gradients.energies(network, same, region, input_gradients.SCORES[name])
    torch.testing.assert_close(found, expected(network, positive, negative), rtol=1e-5, atol=0)


def test_mixtures_of_one_class_are_left_out_and_their_mask_is_the_region(sample: Sample) -> None:
    """Rows 2i and 2i+1 are mixed: of the classes 0 1 and 0 0 the first two rows remain."""
    sample.targets[2:] = 0
    mixed, region = input_gradients.with_region(sample, CutMix(), 0)
    assert mixed.index.tolist() == [0, 1]
    assert mixed.targets.tolist() == [[0, 1], [1, 0]]
    partners = sample.inputs[[1, 0]]
    torch.testing.assert_close(mixed.inputs, region * sample.inputs[:2] + (1 - region) * partners)


def test_a_row_averages_energies_and_shares() -> None:
    """By hand: energies 4 and 12, outside 1 and 9, shares 25 and 75 %; a sample without gradient has no share."""
    values = torch.tensor([[1.0, 4.0], [9.0, 12.0]], dtype=torch.float64)
    assert input_gradients.row(Path("runs/x"), "logit", values) == "| x | logit | 8 | 5 | 50.0 |"
    values = torch.tensor([[1.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    assert input_gradients.row(Path("x"), "margin", values) == "| x | margin | 2 | 0.5 | 25.0 |"


def test_a_folder_without_weights_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert input_gradients.main([str(tmp_path)]) == 2
    assert "final.safetensors does not exist; give folders of finished runs" in capsys.readouterr().err
