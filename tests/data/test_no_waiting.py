"""Nothing in a training step waits for the device.

There need be no GPU: tensors on the device `meta` have shapes and no data, so whoever wants a value from one fails. A
copy to the device can be waited for, too; `Watch` looks for those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from networks import random_sample
from torch import Tensor
from waiting_copies import Watch

from provscale.data.host_batch import HostSample
from provscale.data.loader import LoadedItems, make_loader
from provscale.data.transforms import ItemTransform
from provscale.guidance.step import GuidedStep
from provscale.run.step_report import Readout
from provscale.sample import Item, Sample
from provscale.synthesis import BatchMix, CutMix, ResizeMix, Synthesis, random_mask


def on_device(sample: Sample) -> Sample:
    return sample.to("meta")


def clips() -> Sample:
    """Six skeleton clips [P, F, E] = [4, 5, 6], as the loader's `collate` leaves them."""
    items = [Item(torch.randn(4, 5, 6), number % 3, str(number), valid_mask=torch.ones(4, 5, 6)) for number in range(6)]
    data = LoadedItems(items, Synthesis().prepare, lambda item: item, 3, 0)  # type: ignore[arg-type]
    (sample,) = make_loader(data, [[(0, index) for index in range(6)]], 0, False)
    return sample


READS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda tensor: tensor.sum().item(),
    "tolist": lambda tensor: tensor.tolist(),
    "cpu": lambda tensor: tensor.cpu(),
    "if": lambda tensor: bool((tensor > 0).any()),
    "boolean index": lambda tensor: tensor[tensor > 0],
    "nonzero": lambda tensor: tensor.nonzero(),
    "equal": lambda tensor: torch.equal(tensor, tensor),
}
SENDS: dict[str, Callable[[Tensor], Any]] = {
    "numbers": lambda tensor: torch.tensor([1.0, 2.0], device=tensor.device),
    "to": lambda tensor: torch.ones(3).to(tensor.device),
    "copy": lambda tensor: tensor.copy_(torch.ones(3)),
    "index": lambda tensor: tensor[torch.tensor([1, 0])],
}


@pytest.mark.parametrize("name", [*READS, *SENDS])
def test_what_is_looked_for_is_found(name: str) -> None:
    """Each of these makes the host wait on a GPU."""
    tensor = torch.ones(3, device="meta")
    watch = Watch()
    if name in READS:
        with pytest.raises((RuntimeError, NotImplementedError)), watch:
            READS[name](tensor)
    else:
        with watch:
            SENDS[name](tensor)
        assert watch.copies.awaited


@pytest.mark.parametrize("rows", [slice(0, 4), torch.tensor([1, 0, 3, 2])])
@pytest.mark.parametrize("mixing", [CutMix(), ResizeMix(), Synthesis()])
def test_synthesis_of_images(mixing: Synthesis, rows: slice | Tensor) -> None:
    sample = random_sample(batch=6)
    with Watch() as watch:
        there = on_device(sample)
        mixed = mixing(there, there[rows][:6] if len(there[rows]) == 6 else None, (0, 1))
        moved = random_mask(mixed, (0, 1))[rows]
    assert watch.copies.awaited == []
    assert moved.inputs.is_meta
    assert moved.provenance_mask.is_meta


@pytest.mark.parametrize("variant", ["persons", "frames", "both"])
def test_synthesis_of_clips(variant: Any) -> None:
    """The loader says who is in a clip, so that the device need not be asked; and says it rightly."""
    sample = clips()
    with Watch() as watch:
        mixed = BatchMix(variant)(on_device(sample), None, (0, 1))
    assert watch.copies.awaited == []
    assert mixed.inputs.is_meta
    here = sample.to("cpu")
    known, asked = BatchMix(variant)(here, None, (0, 1)), here
    asked.present = None
    assert torch.equal(known.inputs, BatchMix(variant)(asked, None, (0, 1)).inputs)


def test_bytes_become_the_networks_inputs_there() -> None:
    normalise = ItemTransform(lambda item: item).normalise
    batch = HostSample(**vars(random_sample(batch=4)), normalise=normalise)
    batch.inputs = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    batch.provenance_mask = torch.ones(4, 1, 1, 1)
    with Watch() as watch:
        there = batch.to("meta")
    assert watch.copies.awaited == []
    assert (there.inputs.dtype, there.inputs.shape) == (torch.float32, (4, 3, 16, 16))
    assert there.provenance_mask.shape == (4, 1, 16, 16)
    assert type(there) is Sample


@pytest.fixture
def autocast_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch knows no autocast for `meta`; off, as here, it is the same everywhere."""
    for name in ("autocast", "is_autocast_enabled"):
        original = getattr(torch, name)

        def renamed(device_type: str, *rest: Any, original: Any = original, **arguments: Any) -> Any:
            return original("cpu" if device_type == "meta" else device_type, *rest, **arguments)

        monkeypatch.setattr(torch, name, renamed)


@pytest.mark.parametrize("targets", [1, 2])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
@pytest.mark.parametrize("term", ["none", "sample"])
@pytest.mark.usefixtures("autocast_on_meta")
def test_a_guided_step(name: str, targets: int, term: str) -> None:
    """The first step looks at the network itself; those after it are the ones that must not wait."""
    options: dict[str, Any] = {"img_size": 32} if "vit" in name else {}
    network = timm.create_model(name, num_classes=5, **options).to("meta").train()
    step = GuidedStep(network, 0.1, sampled_term=term)
    sample = on_device(random_sample(targets, size=32, real=() if targets == 2 else (1,)))
    step(sample)["loss"].backward()
    with Watch() as watch:
        step(sample)["loss"].backward()
    assert watch.copies.awaited == []
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mixing", [CutMix(), ResizeMix()])
def test_a_step_on_cuda(mixing: Synthesis) -> None:
    """PyTorch itself raises an error for operations that synchronise."""
    network = timm.create_model("test_resnet", num_classes=5).cuda().train()
    step = GuidedStep(network, 0.1)
    sample = random_sample(batch=6, size=32).pin_memory()
    for number in range(3):
        if number == 2:
            torch.cuda.set_sync_debug_mode("error")
        try:
            losses = step(mixing(sample.to("cuda"), None, (0, number)))
            losses["loss"].backward()
            readout = Readout(torch.stack([losses["loss"].detach(), losses["loss_cls"]]))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert readout.read() == [float(losses["loss"]), float(losses["loss_cls"])]
