"""Recomputed activations: the same numbers, fewer of them kept."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from networks import as_float64, assert_rounds_alike
from timm.layers import DropPath
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from provscale.errors import UserError
from provscale.guidance.objective import Objective
from provscale.sample import Sample
from provscale.second_derivatives.recompute import blocks_of, recompute_activations


class Block(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.more = nn.Sequential(nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU(), nn.Dropout(0.2))
        self.drop_path = DropPath(0.3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + self.drop_path(self.more(self.norm(self.conv(inputs))))


class Network(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(Block() for _ in range(depth)))
        self.head = nn.Linear(8, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(inputs)).mean(dim=(2, 3)))


def sample_of(size: int, dtype: torch.dtype = torch.float32) -> Sample:
    generator = torch.Generator().manual_seed(0)
    sample = Sample.real(torch.randn(4, 3, size, size, generator=generator).to(dtype), torch.tensor([0, 1, 2, 3]))
    sample.targets = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]])
    sample.mixing_weight = torch.full((4,), 0.4)
    sample.provenance_mask = (torch.rand(4, 1, size, size, generator=generator) > 0.5).float()
    sample.is_synthetic = torch.ones(4, dtype=torch.bool)
    sample.guided = True
    return sample


@pytest.mark.parametrize("alpha", [0.0, 50.0])
def test_numbers_draws_and_statistics_are_the_same(alpha):
    torch.manual_seed(0)
    plain = Network().double()
    recomputing = copy.deepcopy(plain)
    assert recompute_activations(recomputing) == 3
    recomputing = copy.deepcopy(recomputing)  # as the self-check does
    assert list(recomputing.state_dict()) == list(plain.state_dict())
    results = []
    for network in (plain, recomputing):
        torch.manual_seed(1)
        result = Objective()(network, list(network.parameters()), sample_of(9, torch.float64), alpha)
        results.append((result, torch.rand(2)))
    ((expected, gradients), draw), ((found, found_gradients), found_draw) = results
    torch.testing.assert_close(found["loss"], expected["loss"])
    torch.testing.assert_close(found_draw, draw, rtol=0, atol=0)
    for mine, theirs in zip(found_gradients, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
    for mine, theirs in zip(recomputing.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_bf16_rounds_as_without_recomputing():
    torch.manual_seed(0)
    plain = Network()
    recomputing, double = copy.deepcopy(plain), copy.deepcopy(plain).double()
    recompute_activations(recomputing)
    gradients = []
    for network, sample in ((recomputing, sample_of(9)), (plain, sample_of(9)), (double, as_float64(sample_of(9)))):
        torch.manual_seed(1)
        objective = Objective(autocast_dtype=None if network is double else torch.bfloat16)
        _, found = objective(network, list(network.parameters()), sample, 5.0)
        gradients.append(torch.cat([g.flatten() for g in found if g is not None]))
    assert_rounds_alike(*gradients)


class LiveBytes(TorchDispatchMode):
    """Counts bytes of tensor memory alive, from the operations that make it."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.alive:
                    self.alive[key] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, key, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


def test_a_guided_step_keeps_less():
    """With 8 equal blocks, of which one is held at a time: below half of what all blocks need."""
    torch.manual_seed(0)
    peaks = []
    for recompute in (False, True):
        network = Network(depth=8)
        if recompute:
            recompute_activations(network)
        gc.collect()
        with LiveBytes() as memory:
            Objective()(network, list(network.parameters()), sample_of(24), 1.0)
        peaks.append(memory.peak)
    assert peaks[1] < peaks[0] / 2


def test_blocks_are_the_outermost_ones():
    import timm

    assert len(blocks_of(timm.create_model("resnet18", num_classes=2))) == 8
    assert len(blocks_of(timm.create_model("deit_tiny_patch16_224", num_classes=2))) == 12


def test_a_network_without_blocks_is_refused():
    with pytest.raises(UserError, match="checkpoint_activations"):
        recompute_activations(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))


class InPlace(nn.Module):
    """A block that begins with an operation in place, as pre-activation blocks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.act = nn.SiLU(inplace=True)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.conv(self.act(inputs))


class Pair(nn.Module):
    """A block of a list of tensors, as HRNet's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.act = nn.GELU()

    def forward(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return [self.act(self.conv(part)) for part in inputs]


class Unusual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.first = nn.Sequential(InPlace(), InPlace())
        self.second = nn.Sequential(Pair())
        self.head = nn.Linear(8, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features = self.first(self.stem(inputs))
        return self.head(self.second([features, features * 2])[1].mean(dim=(2, 3)))


def test_blocks_in_place_and_blocks_of_lists_give_the_same_numbers():
    torch.manual_seed(0)
    plain = Unusual().double()
    recomputing = copy.deepcopy(plain)
    assert recompute_activations(recomputing) == 3
    found = [
        Objective()(network, list(network.parameters()), sample_of(9, torch.float64), 50.0)[1]
        for network in (plain, recomputing)
    ]
    for expected, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-11)
