"""Optimizer and learning-rate schedule; the schedule is a pure function of the step, so there is no state to save."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from provscale.config import OptimConfig


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    new_parameters: frozenset[str],
    config: OptimConfig,
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """SGD or AdamW over two groups: pretrained layers, and new ones at `head_lr_multiplier` times the rate.

    Args:
        named_parameters: the network's, named as in `new_parameters`.
        fused: one kernel updates all parameters, and can be told by the device to leave an update out (see
            `Engine.update`); None: where there is a CUDA device.
    """
    if fused is None:
        fused = torch.cuda.is_available()
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            multiplier = config.head_lr_multiplier if name in new_parameters else 1.0
            groups.setdefault(multiplier, []).append(parameter)
    # `multiplier` stays in the group: the schedule multiplies by it at every step.
    settings = [
        {"params": parameters, "lr": config.lr * multiplier, "multiplier": multiplier}
        for multiplier, parameters in groups.items()
    ]
    if config.name == "adamw":
        betas = (config.momentum, 0.999)
        return torch.optim.AdamW(
            settings, lr=config.lr, weight_decay=config.weight_decay, betas=betas, fused=fused or None
        )
    return torch.optim.SGD(
        settings, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum, fused=fused or None
    )


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Rate of step `step` (0-based) of `total_steps`: from `lr` towards zero, linearly or by half a cosine."""
    progress = step / total_steps
    if config.schedule == "linear":
        return config.lr * (1 - progress)
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * progress)) / 2
    return config.lr


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]
