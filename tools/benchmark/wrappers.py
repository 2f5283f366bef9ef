"""How others wrap a network for several processes, with Eq. 1 written by hand around it, and one such process.

`WRAPPERS` are PyTorch's own ways. In all of them a step is `loss = hand_loss(model, ...); loss.backward()`, as one
would write it in a loop of one's own; what has to happen between the two, or to stand inside the wrapped module, is the
wrapper's.
`python -m tools.benchmark.compare_wrappers` measures them beside this package's engines.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from provscale.sample import Sample
from tools.benchmark.cases import Case, build, hand_loss, make_sample
from tools.benchmark.engines import Server, serve
from tools.benchmark.memory import resident

STEPS = 3
"""Optimizer steps after which weights are compared: the second one sees what the first one left behind."""
RATE = 1e-2
OWN = {"this package, DDP": "ddp", "this package, FSDP2": "fsdp2"}
"""This package's own steps, by engine."""


class LossInside(nn.Module):
    """A module whose forward pass is the whole loss, so that a wrapper sees one forward and one backward pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, sample: Sample) -> Tensor:
        return hand_loss(self.network, sample, None)


@dataclass
class Wrapped:
    """A wrapped network.

    Attributes:
        loss: sample to the loss of Eq. 1.
        module: holds the parameters that the optimizer gets.
        before_backward: between the loss, whose input gradient has been taken, and `loss.backward()`.
        after_backward: before the optimizer's step.
        after_step: after it.
    """

    loss: Callable[[Sample], Tensor]
    module: nn.Module
    before_backward: Callable[[], None] = field(default=lambda: None)
    after_backward: Callable[[], None] = field(default=lambda: None)
    after_step: Callable[[], None] = field(default=lambda: None)


def around(model: nn.Module) -> Callable[[Sample], Tensor]:
    """The loss outside the wrapped network."""
    return lambda sample: hand_loss(model, sample, None)


def averaged(network: nn.Module) -> Wrapped:
    """No wrapper: every process averages its gradients at the end. What the others are compared with."""

    def average() -> None:
        for parameter in network.parameters():
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()

    return Wrapped(around(network), network, after_backward=average)


def ddp(network: nn.Module, *, static: bool = False, inside: bool = False) -> Wrapped:
    model = DistributedDataParallel(LossInside(network) if inside else network, static_graph=static)
    return Wrapped(model if inside else around(model), network)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The members of that list of modules in a network which has most parameters."""
    lists = [list(module) for module in network.modules() if isinstance(module, nn.Sequential | nn.ModuleList)]
    return max(lists, key=lambda found: sum(tensor.numel() for module in found for tensor in module.parameters()))


def fsdp2(network: nn.Module, *, blocks: bool = False, first: bool = True, last: bool = True) -> Wrapped:
    """`fully_shard` on the whole network, or on each of its blocks as well.

    Args:
        first: whether parameters are sharded again after the first backward pass, which is the input gradient's.
        last: the same of `loss.backward()`.
    """
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if blocks:
        for block in blocks_of(network):
            fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    assert isinstance(network, FSDPModule)
    network.set_reshard_after_backward(first)
    wrapped = Wrapped(around(network), network)
    if first != last:
        wrapped.before_backward = lambda: network.set_reshard_after_backward(last)
        wrapped.after_step = lambda: network.set_reshard_after_backward(first)
    return wrapped


WRAPPERS: dict[str, Callable[[nn.Module], Wrapped]] = {
    "gradients averaged by hand": averaged,
    "DDP": ddp,
    "DDP, static_graph": lambda network: ddp(network, static=True),
    "DDP, static_graph, loss inside": lambda network: ddp(network, static=True, inside=True),
    "FSDP2": fsdp2,
    "FSDP2, no reshard after backward": lambda network: fsdp2(network, first=False, last=False),
    "FSDP2, no reshard after the first backward": lambda network: fsdp2(network, first=False),
    "FSDP2, blocks, no reshard after the first backward": lambda network: fsdp2(network, blocks=True, first=False),
}


def whole(parameter: Tensor) -> Tensor:
    """The values of a parameter that may be sharded, flat in float64."""
    return (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach().flatten().double()


class Measured(ABC):
    """What both kinds of process answer to `tools.benchmark.compare_wrappers`."""

    @abstractmethod
    def build(self, case: Case, label: str) -> None:
        """A fresh network with its optimizer and this process's share of the batch."""

    @abstractmethod
    def whole_step(self) -> None:
        """One optimizer step."""

    @abstractmethod
    def parameters(self) -> Tensor:
        """All parameters by name, float64 [number of values]; a collective operation where they are sharded."""

    def seconds(self) -> float:
        """CPU seconds of one optimizer step."""
        started = time.process_time()
        self.whole_step()
        return time.process_time() - started

    def change(self, case: Case, label: str) -> NDArray[np.float64] | str:
        """What `STEPS` steps add to a fresh network's parameters, [number of values]; or how they fail."""
        self.build(case, label)
        before = self.parameters()
        try:
            for _ in range(STEPS):
                self.whole_step()
        except RuntimeError as error:
            return f"fails: {str(error).partition('.')[0]}"
        return (self.parameters() - before).cpu().numpy()

    def peak(self) -> float:
        """Peak of this process's resident memory so far, MiB."""
        return resident("VmHWM")


class WrapperProcess(Measured):
    """One process of a wrapper."""

    def __init__(self, wrapper: str) -> None:
        self.wrapper = wrapper

    def build(self, case: Case, label: str) -> None:
        state = PartialState(cpu=True)
        torch.manual_seed(0)
        self.wrapped = WRAPPERS[self.wrapper](build(case).train())
        self.optimizer = torch.optim.SGD(self.wrapped.module.parameters(), lr=RATE, momentum=0.9)
        share = case.batch // state.num_processes
        sample = make_sample(case, label, state.device)
        self.sample = sample[slice(state.process_index * share, (state.process_index + 1) * share)]

    def whole_step(self) -> None:
        loss = self.wrapped.loss(self.sample)
        self.wrapped.before_backward()
        loss.backward()
        self.wrapped.after_backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.wrapped.after_step()

    def parameters(self) -> Tensor:
        for module in self.wrapped.module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return torch.cat([whole(parameter) for _, parameter in sorted(self.wrapped.module.named_parameters())])


class OwnProcess(Measured):
    """One process of this package's engine, which the launcher chose."""

    def __init__(self) -> None:
        self.server = Server(RATE)

    def build(self, case: Case, label: str) -> None:
        self.server.prepare(case, label, "eager", "no")
        self.server.step.choose("guided, eager", self.server.executors)

    def whole_step(self) -> None:
        self.server.whole_step()

    def parameters(self) -> Tensor:
        return self.server.parameters()


if __name__ == "__main__":
    serve(int(sys.argv[1]), OwnProcess() if sys.argv[2] in OWN else WrapperProcess(sys.argv[2]))
