"""Chooses the engine from what `accelerate launch` says in the environment."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from provscale.config import Config
from provscale.engine.base import Engine, environment_without
from provscale.errors import UserError

DRIVER = Path("/dev/nvidiactl")


def build_engine(config: Config) -> Engine:
    """The engine that the launch config names: one process, DDP, ZeRO-1/2/3 or FSDP2.

    Raises:
        UserError: the launch config contradicts `config`, or asks for what is not supported.
    """
    check_launch(config)
    check_device()
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


def check_device() -> None:
    """Raises UserError where training would run on the CPU though nobody asked for that.

    Somebody asked for GPUs who starts several processes, or whom SLURM gave some; so it seems where NVIDIA's driver is.
    To ask for a CPU is to hide the GPUs: CUDA_VISIBLE_DEVICES empty or -1, as launch/cpu has it.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = visible is not None and visible.strip().partition(",")[0] in ("", "-1")
    if torch.cuda.is_available() or hidden or os.environ.get("ACCELERATE_TORCH_DEVICE") == "cpu":
        return
    granted = os.environ.get("SLURM_GPUS_ON_NODE") or os.environ.get("SLURM_JOB_GPUS") or "0"
    reasons = {
        f"SLURM granted GPUs ({granted})": granted != "0",
        f"{os.environ.get('WORLD_SIZE')} processes were started": int(os.environ.get("WORLD_SIZE", "1")) > 1,
        f"NVIDIA's driver is installed ({DRIVER})": DRIVER.exists(),
    }
    reason = next((text for text, true in reasons.items() if true), None)
    if reason is not None:
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs only"
        raise UserError(
            f"launch config: {reason}, but PyTorch finds no usable GPU; this PyTorch is built for {built}: install a "
            "driver or a PyTorch that fit each other (see nvidia-smi), or choose a config of launch/cpu"
        )


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
