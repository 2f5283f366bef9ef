"""How far bf16 gradients are from FP32's, and how much of that is decided by units that rounding switches.

    python -m tools.benchmark.bf16 --doc docs/benchmarks/README.md

A ReLU, a max pooling and SKP's maximum over a set pass gradients to the units they choose. Rounding a network's inner
values changes a few choices, and each changes gradients by far more than a rounding. So the relative error of all
parameter gradients is measured three times, for L_cls (what plain training has) and for L_PG: as it is; in bf16 with
the choices of the FP32 step; in FP32 with the choices of the bf16 step. Where the second is small and the third equals
the first, no operation is at fault. Random weights, random inputs, small images.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from provscale.errors import reported
from provscale.files import update_document
from provscale.guidance.objective import Objective
from provscale.models import skp
from provscale.sample import Sample
from provscale.second_derivatives.set_maximum import SetMaximum
from tools.benchmark.cases import QUICK, build, make_sample
from tools.benchmark.tables import markdown, show

TERMS = ("loss_cls", "loss_guidance")


class Choices(TorchFunctionMode):
    """Notes which units ReLU, max pooling and `SetMaximum` choose, or makes them choose those `given`."""

    def __init__(self, given: list[Tensor] | None = None) -> None:
        super().__init__()
        self.noted: list[Tensor] = []
        self.given = None if given is None else list(given)

    def choose(self, own: Callable[[], Tensor]) -> Tensor:
        self.noted.append(own() if self.given is None else self.given.pop(0))
        return self.noted[-1]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.relu:
            return args[0] * self.choose(lambda: args[0].detach() > 0).to(args[0].dtype)
        if func is F.max_pool2d:
            options = {**kwargs, "return_indices": True}
            places = self.choose(lambda: func(args[0].detach(), *args[1:], **options)[1])
            return args[0].flatten(2).gather(2, places.flatten(2)).view(places.shape)
        return func(*args, **kwargs)

    def apply(self, values: Tensor, dim: int) -> Tensor:
        """In the place of `SetMaximum.apply`."""

        def largest() -> Tensor:
            found = values.detach() == values.detach().amax(dim, keepdim=True)
            return found / found.sum(dim, keepdim=True)

        shares = self.choose(largest).to(values.dtype)
        return torch.where(shares > 0, values * shares, 0).sum(dim)


def gradient(network: nn.Module, sample: Sample, term: str, dtype: torch.dtype | None, choices: Choices) -> Tensor:
    """All parameter gradients of one of Eq. 1's terms, float64 [number of values]; drop path draws the same always."""
    network = copy.deepcopy(network).train()
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    parameters = list(network.parameters())
    torch.manual_seed(0)
    with patch.object(skp, "SetMaximum", choices), choices:
        loss = Objective(autocast_dtype=dtype).terms(network, sample, guided=True)[term]
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    zeros = (torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True))
    return torch.cat([value.flatten().double() for value in zeros])


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def errors(network: nn.Module, sample: Sample, term: str) -> dict[str, float]:
    """Relative errors: `bf16`; `same choices`, bf16 with those of FP32; `other choices`, FP32 with those of bf16; and
    `beside`, by which the last two steps with bf16's choices differ."""
    in_fp32, in_bf16 = Choices(), Choices()
    exact = gradient(network, sample, term, None, in_fp32)
    rounded = gradient(network, sample, term, torch.bfloat16, in_bf16)
    same = gradient(network, sample, term, torch.bfloat16, Choices(in_fp32.noted))
    other = gradient(network, sample, term, None, Choices(in_bf16.noted))
    return {"bf16": error(rounded, exact), "same choices": error(same, exact), "other choices": error(other, exact),
            "beside": error(rounded, other)}  # fmt: skip


def run(options: argparse.Namespace) -> None:
    from tools.benchmark.__main__ import chosen, hardware

    torch.set_num_threads(1)
    assert skp.SetMaximum is SetMaximum
    table = [["backbone", "batch", "term", "bf16", "bf16 with FP32's choices", "FP32 with bf16's choices"]]
    for case in chosen(QUICK, options.backbones):
        print(f"[bf16] {case.backbone}", file=sys.stderr, flush=True)
        torch.manual_seed(0)
        network = build(case)
        for term in TERMS:
            found = errors(network, make_sample(case, "soft", torch.device("cpu")), term)
            figures = [f"{found[name]:.1%}" for name in ("bf16", "same choices", "other choices")]
            table.append([case.backbone, case.shape, term.replace("loss_guidance", "L_PG").replace("loss_cls", "L_cls"),
                          *figures])  # fmt: skip
    show(table)
    if options.doc is not None:
        about = {**hardware(torch.device("cpu"), 1), "clock": "relative errors of all parameter gradients together"}
        update_document(options.doc, markdown(table, about), "bf16")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", help="words that a backbone's name must contain one of")
    parser.add_argument("--doc", type=Path, help="Markdown file whose table between <!-- bf16 --> is replaced")
    options = parser.parse_args(arguments)
    return reported(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
