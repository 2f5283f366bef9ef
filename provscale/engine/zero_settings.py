"""DeepSpeed's settings: the launch config's JSON, completed from our config, which decides what both could say.

DeepSpeed clips gradients at 1.0 and Accelerate replaces the optimizer under offload unless told otherwise, both
silently: so everything that changes what is trained is written out here, and a JSON that differs is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from provscale.config import Config
from provscale.errors import UserError
from provscale.shipped import shipped

FILE_VARIABLE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
LAUNCH_VARIABLES = {
    "gradient_clipping": "ACCELERATE_GRADIENT_CLIPPING",
    "gradient_accumulation_steps": "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
}
# What decides each value instead of DeepSpeed's JSON.
OURS = {
    "gradient_clipping": "optim.clip_norm",
    "gradient_accumulation_steps": "train.accumulation",
    "train_batch_size": "data.batch_size",
    "train_micro_batch_size_per_gpu": "data.batch_size / (processes x train.accumulation)",
    "bf16.enabled": "train.precision, by autocast inside the step",
    "fp16.enabled": "train.precision, by autocast inside the step",
    "torch_autocast.enabled": "train.precision, by autocast inside the step",
    "amp.enabled": "train.precision, by autocast inside the step",
    "communication_data_type": "train.precision; gradients travel in FP32",
    "zero_force_ds_cpu_optimizer": "optim.name; true would train with DeepSpeed's CPU Adam whatever it says",
    "managed_gradient_accumulation": "train.accumulation",
}
# What DeepSpeed does anyway: need not be written, only not be contradicted.
DEFAULTS = {
    "torch_autocast.enabled": False,
    "amp.enabled": False,
    "communication_data_type": "fp32",
    "managed_gradient_accumulation": True,
}


def deepspeed_settings(config: Config, world_size: int, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The complete DeepSpeed config of this run.

    Raises:
        UserError: unreadable JSON, a stage other than 1, 2, 3, or a value that contradicts `config`.
    """
    given, source = read_launch(environment)
    for section in ("optimizer", "scheduler"):
        if section in given:
            raise UserError(f"{source}: '{section}' is set, but optim.* decides it; remove '{section}' from that file")
    stage = lookup(given, "zero_optimization.stage")
    if stage not in (1, 2, 3):
        raise UserError(
            f"{source}: zero_optimization.stage is {stage}, must be 1, 2 or 3; for none use launch/ddp.yaml"
        )
    for key, value in expected(config, world_size).items():
        found = lookup(given, key)
        if found is not None and found != "auto" and found != value:
            raise UserError(
                f"{source}: {key} is {found}, but {OURS[key]} makes it {value}; remove {key} from there (or write "
                '"auto"), so that there is one source'
            )
        if key not in DEFAULTS:
            store(given, key, value)
    given["zero_allow_untested_optimizer"] = True
    given.setdefault("steps_per_print", 2**62)
    return given


def expected(config: Config, world_size: int) -> dict[str, Any]:
    """Dotted DeepSpeed keys and the values our config gives them."""
    accumulation = config.train.accumulation
    return {
        # 0.0 switches clipping off; a missing key would mean 1.0.
        "gradient_clipping": float(config.optim.clip_norm or 0.0),
        "gradient_accumulation_steps": accumulation,
        "train_micro_batch_size_per_gpu": config.data.batch_size // (world_size * accumulation),
        "train_batch_size": config.data.batch_size,
        "bf16.enabled": False,
        "fp16.enabled": False,
        "zero_force_ds_cpu_optimizer": False,
        **DEFAULTS,
    }


def read_launch(environment: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """What the launch config says, and how to call it in messages."""
    path = environment.get(FILE_VARIABLE)
    if path is None:
        source = "launch config"
        given: dict[str, Any] = {
            "zero_optimization": {"stage": int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2))}
        }
        for name in ("optimizer", "param"):
            device = environment.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{name.upper()}_DEVICE", "none")
            if device != "none":
                given["zero_optimization"][f"offload_{name}"] = {"device": device}
    else:
        source = path
        given = read_json(path)
    for key, variable in LAUNCH_VARIABLES.items():
        if variable in environment and key not in given:
            given[key] = float(environment[variable]) if key == "gradient_clipping" else int(environment[variable])
    return given, source


def read_json(name: str) -> dict[str, Any]:
    """The JSON file, relative to the working directory or else to the folder that holds `launch/`."""
    path = Path(name) if Path(name).exists() else shipped(name)
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{name}: DeepSpeed's config cannot be read ({error.strerror}); start in its folder") from None
    except ValueError as error:
        raise UserError(f"{name}: DeepSpeed's config is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{name}: DeepSpeed's config is {type(content).__name__}, must be an object") from None
    return content


def lookup(settings: dict[str, Any], key: str) -> Any:
    """The value of a dotted key, or None."""
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def store(settings: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        settings = settings.setdefault(section, {})
    settings[last] = value
