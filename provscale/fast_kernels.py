"""Which kernels PyTorch may use on a GPU: process-wide settings and the layout of weights, as the config allows."""

from __future__ import annotations

import torch
from torch import nn

from provscale.config import Config


def use_fast_kernels(config: Config, network: nn.Module, device: torch.device) -> None:
    """Sets TF32, cuDNN's search for algorithms and, unless the config decides, channels last. Nothing on a CPU."""
    if device.type != "cuda":
        return
    torch.backends.cudnn.benchmark = config.train.cudnn_benchmark
    torch.backends.cudnn.allow_tf32 = config.train.tf32 != "none"
    torch.set_float32_matmul_precision("high" if config.train.tf32 == "all" else "highest")
    if config.model.channels_last is None and config.train.precision == "bf16":
        network.to(memory_format=torch.channels_last)
