"""Nothing in a training step waits for the device; what waits for the loader is measured.

There need be no GPU: tensors on the device `meta` have shapes and no data, so whoever wants a value from one fails. A
copy to the device can be waited for, too; `Watch` looks for those.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from networks import random_sample
from tiny_runs import arguments, assert_same_run, steps_saved
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from provscale.command_line import parse
from provscale.data.host_batch import HostSample
from provscale.data.loader import LoadedItems, make_loader
from provscale.data.transforms import ItemTransform
from provscale.errors import UserError
from provscale.guidance.step import GuidedStep
from provscale.run.step_report import Readout
from provscale.sample import Item, Sample
from provscale.synthesis import BatchMix, CutMix, ResizeMix, Synthesis, random_mask
from provscale.trainer import Trainer

FACTORIES = (torch.tensor, torch.as_tensor, torch.asarray)


class Copies(TorchDispatchMode):
    """Operations that take a CPU tensor with dimensions and give one on `meta`: copies, which may be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.awaited: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        there = any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves(result))
        here = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and not leaf.is_meta]
        if there and any(leaf.dim() for leaf in here) and not (kwargs or {}).get("non_blocking"):
            self.awaited.append(str(function))
        return result


class Watch(TorchFunctionMode):
    """Notes every copy to `meta` for which the host would wait on a GPU.

    Making a tensor of Python numbers there is one, and the dispatcher does not see it.
    """

    def __enter__(self) -> Watch:
        self.copies = Copies()
        self.copies.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.copies.__exit__(*error)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in FACTORIES and result.is_meta:
            self.copies.awaited.append(function.__name__)
        return result


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


# ---- the trainer -------------------------------------------------------------------------------------------------
class LateTrainer(Trainer):
    """A tiny run that looks at each step only when the next one is queued, as on CUDA."""

    def __init__(self, folder: Path, name: str = "run", unread: int = 1, **changes: Any) -> None:
        super().__init__(parse(arguments(folder, name, **changes)))
        self.unread = unread


def test_the_trainers_synthesis(tmp_path: Path) -> None:
    trainer = LateTrainer(tmp_path, guidance__mask="random")
    micro = next(trainer.plan.micro_batches(0))
    (loaded,) = make_loader(trainer.train_items, [[(0, index) for index in micro.indices]], 0, False)
    with Watch() as watch:
        sample = trainer.synthesise(loaded.to("meta"), micro, 0)
    assert watch.copies.awaited == []
    assert sample.guided
    assert sample.inputs.is_meta


@pytest.fixture
def read_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens in which order: "update" of the weights, "read" of a step's numbers."""
    order: list[str] = []
    read = Readout.read

    def noted(self: Readout) -> list[float]:
        order.append("read")
        return read(self)

    monkeypatch.setattr(Readout, "read", noted)
    return order


@pytest.mark.parametrize("unread", [0, 1])
def test_a_step_is_looked_at_when_the_next_is_queued(tmp_path: Path, read_at: list[str], unread: int) -> None:
    """4 steps of one epoch. At once (`unread` 0), each is read before its update; else the next one's update waits."""
    trainer = LateTrainer(tmp_path, unread=unread, train__epochs=1)
    update = trainer.engine.update

    def noted(**options: Any) -> None:
        read_at.append("update")
        update(**options)

    trainer.engine.update = noted  # type: ignore[method-assign]
    trainer.fit()
    expected = ["read", "update"] * 4 if unread == 0 else ["update", *["read", "update"] * 3, "read"]
    assert read_at == expected


def test_looking_later_changes_nothing(tmp_path: Path) -> None:
    common = {"checkpoint__every_steps": 3, "train__accumulation": 2}
    for unread in (0, 1):
        LateTrainer(tmp_path, f"run{unread}", unread, **common).fit()
    assert_same_run(tmp_path / "run0", tmp_path / "run1")


def test_a_loss_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    """lr 1e30: the loss of step 2 is not finite. Looked at late, it is still named, and found before any checkpoint."""
    for name, every, saved in (("often", 1, [1]), ("seldom", 3, [])):
        trainer = LateTrainer(tmp_path, name, optim__lr=1e30, checkpoint__every_steps=every)
        with pytest.raises(UserError, match=r"the loss is (nan|inf) at step 2, nothing of it was saved"):
            trainer.fit()
        assert steps_saved(tmp_path / name) == saved
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if line["kind"] == "train"] == [1]


def test_a_stop_is_noticed_one_step_later_at_most(tmp_path: Path) -> None:
    """Asked for in step 2, seen when step 3 is queued: the checkpoint is that of step 3, and 5 steps remain."""
    trainer = LateTrainer(tmp_path)
    step = trainer.optimizer_step

    def asked(*rest: Any) -> None:
        trainer.stop_request.asked = trainer.progress.step >= 1
        step(*rest)

    trainer.optimizer_step = asked  # type: ignore[method-assign]
    assert trainer.fit().step == 3
    assert steps_saved(tmp_path / "run") == [3]
    assert LateTrainer(tmp_path).fit().step == 8
    LateTrainer(tmp_path, "whole").fit()
    assert_same_run(tmp_path / "run", tmp_path / "whole")


class Slow:
    """Items that each take 20 ms to load."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Item:
        time.sleep(0.02)
        return self.source[index]


@pytest.mark.parametrize("unread", [0, 1])
def test_the_share_of_waiting_for_data(tmp_path: Path, unread: int) -> None:
    """8 items of 20 ms are waited for, 0.16 s; an update of 0.1 s and a report of 0.1 s are not.

    A busy machine makes all of them longer, none shorter: so each bound is a lower one.
    """
    trainer = LateTrainer(tmp_path, unread=unread, train__epochs=1)
    trainer.train_items.source = Slow(trainer.train_items.source)
    update, evaluate = trainer.engine.update, trainer.evaluate
    trainer.engine.update = lambda **options: (time.sleep(0.1), update(**options))[1]  # type: ignore[method-assign]
    trainer.evaluate = lambda epoch: (time.sleep(0.5), evaluate(epoch))[1]  # type: ignore[method-assign]
    log = trainer.log_reports
    trainer.log_reports = lambda: (time.sleep(0.1), log())[1]  # type: ignore[method-assign]
    trainer.fit()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    training = [row for row in rows if row["kind"] == "train"]
    assert len(training) == 4
    for number, row in enumerate(training):
        seconds = 8 / row["samples_per_second"]
        waited = row["data_wait"] * seconds
        assert waited >= 0.16
        # The report of a step is part of the next one's time, as it keeps that from beginning.
        assert seconds - waited >= (0.2 if number else 0.1)
        assert 0 < row["data_wait"] < 1


def test_loading_goes_on_during_evaluation(tmp_path: Path) -> None:
    """One set of loader processes for all epochs: the first batches of epoch 2 are there when epoch 1 is evaluated.

    With a loader made anew for every epoch, the second epoch's first item would be asked for after the evaluation.
    """
    trainer = LateTrainer(tmp_path, data__workers=1)
    times = Noting(trainer.train_items.source, tmp_path / "times")
    trainer.train_items.source = times
    evaluate = trainer.evaluate
    ends: list[float] = []

    def slow(epoch: int) -> None:
        time.sleep(1.0)
        evaluate(epoch)
        ends.append(time.time())

    trainer.evaluate = slow  # type: ignore[method-assign]
    trainer.fit()
    loaded = [line.split() for line in (tmp_path / "times").read_text().splitlines()]
    assert len({process for process, _ in loaded}) == 1
    assert sum(float(moment) < ends[0] for _, moment in loaded) >= 32 + 8


class Noting(Slow):
    """Writes which process loaded an item, and when."""

    def __init__(self, source: Any, path: Path) -> None:
        super().__init__(source)
        self.path = path

    def __getitem__(self, index: int) -> Item:
        with self.path.open("a") as file:
            file.write(f"{os.getpid()} {time.time()}\n")
        return self.source[index]
