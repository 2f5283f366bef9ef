"""Chooses the engine from what `accelerate launch` says in the environment."""

from __future__ import annotations

import os

import torch

from provscale.config import Config
from provscale.engine.base import Engine, environment_without
from provscale.errors import UserError


def build_engine(config: Config) -> Engine:
    """The engine that the launch config names: one process, DDP, ZeRO-1/2/3 or FSDP2.

    Raises:
        UserError: the launch config contradicts `config`, or asks for what is not supported.
    """
    check_launch(config)
    if not torch.cuda.is_available():
        # Accelerate and DeepSpeed would otherwise look for a device themselves when they start.
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if launched_with("DEEPSPEED"):
        try:
            from provscale.engine.zero import DeepSpeedEngine
        except ImportError as error:
            raise UserError(
                f"launch config: DEEPSPEED needs packages that are not installed ({error}); run: pip install "
                "'provscale[zero]', or use another launch config"
            ) from None
        return DeepSpeedEngine(config)
    if launched_with("FSDP"):
        from provscale.engine.fsdp2 import FSDP2Engine

        return FSDP2Engine(config)
    return Engine(config)


def build_evaluation_engine(config: Config) -> Engine:
    """An engine that only predicts. Without gradients and optimizer there is nothing to shard, so each process holds
    the whole network, whatever engine the launch config names.

    Raises:
        UserError: see `build_engine`.
    """
    check_launch(config)
    with environment_without("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
        return build_engine(config)


def launched_with(name: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true"


def check_launch(config: Config) -> None:
    """Raises UserError for what a launch config may say but this program decides itself."""
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", config.train.precision):
        raise UserError(
            f"launch config: mixed_precision is {precision}, train.precision is {config.train.precision}; set "
            "mixed_precision to 'no' there and choose with train.precision"
        )
    compiler = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if compiler.lower() != "no":
        raise UserError(
            f"launch config: dynamo_backend is {compiler}, but torch.compile has no double backward; set it to 'no' "
            "and choose with guidance.executor"
        )
    if launched_with("MEGATRON_LM"):
        raise UserError("launch config: MEGATRON_LM is not supported; allowed are NO, MULTI_GPU, DEEPSPEED and FSDP")
