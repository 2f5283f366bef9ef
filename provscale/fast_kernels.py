"""What is fast on a GPU, where the config leaves the choice: executor, kernels and the layout of weights."""

from __future__ import annotations

import torch

from provscale.config import Config
from provscale.engine import Engine
from provscale.guidance.executors import EXECUTORS
from provscale.guidance.step import GuidedStep


def choose_fast_ways(config: Config, step: GuidedStep, engine: Engine) -> None:
    """Sets up a step that is not prepared yet, and PyTorch in this process. Nothing changes on a CPU.

    `guidance.executor` auto: one launch per step instead of thousands, wherever a step can be recorded.
    `model.channels_last` null: with bf16, whose tensor cores want it.
    """
    if engine.device.type != "cuda":
        return
    torch.backends.cudnn.benchmark = config.train.cudnn_benchmark
    torch.backends.cudnn.allow_tf32 = config.train.tf32 != "none"
    torch.set_float32_matmul_precision("high" if config.train.tf32 == "all" else "highest")
    waits = config.guidance.split_batch or config.train.checkpoint_activations
    if config.guidance.executor == "auto" and not waits and not engine.moves_parameters:
        step.executor = EXECUTORS["cuda_graph"]()
    if config.model.channels_last is None and config.train.precision == "bf16":
        step.network.to(memory_format=torch.channels_last)
