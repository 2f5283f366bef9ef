"""What a launch config may say of an engine, and what only the run's own config may."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from paths import ROOT

from provscale.config import Config
from provscale.engine.select import build_engine
from provscale.engine.zero_settings import deepspeed_settings
from provscale.errors import UserError


def settings(tmp_path: Path, content: dict[str, Any], **environment: str) -> dict[str, Any]:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2}, **content}))
    config = Config()
    config.data.batch_size, config.train.accumulation = 64, 2
    return deepspeed_settings(config, 4, {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file), **environment})


@pytest.mark.parametrize("given", [{}, {"gradient_clipping": "auto", "train_micro_batch_size_per_gpu": 8}])
def test_deepspeed_settings_come_from_the_config(tmp_path: Path, given: dict[str, Any]) -> None:
    found = settings(tmp_path, given)
    assert found["gradient_clipping"] == 0.0
    assert found["gradient_accumulation_steps"] == 2
    assert found["train_micro_batch_size_per_gpu"] == 64 // 4 // 2
    assert not found["bf16"]["enabled"]
    # Accelerate would train with DeepSpeed's Adam in place of any offloaded optimizer.
    assert found["zero_force_ds_cpu_optimizer"] is False


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"gradient_clipping": 1.0}, ["gradient_clipping is 1.0", "optim.clip_norm makes it 0.0"]),
        ({"gradient_accumulation_steps": 1}, ["gradient_accumulation_steps is 1", "train.accumulation makes it 2"]),
        ({"train_micro_batch_size_per_gpu": 4}, ["train_micro_batch_size_per_gpu is 4", "makes it 8"]),
        ({"bf16": {"enabled": True}}, ["bf16.enabled is True", "train.precision"]),
        ({"communication_data_type": "bf16"}, ["communication_data_type is bf16"]),
        ({"optimizer": {"type": "Adam"}}, ["'optimizer' is set", "optim.*"]),
        ({"zero_optimization": {"stage": 0}}, ["zero_optimization.stage is 0"]),
    ],
)
def test_a_second_source_is_refused(tmp_path: Path, given: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        settings(tmp_path, given)
    for part in ["ds.json", *parts]:
        assert part in str(error.value)


def test_launch_yaml_is_a_second_source_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gradient_clipping is 1\.0"):
        settings(tmp_path, {}, ACCELERATE_GRADIENT_CLIPPING="1.0")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "mixed_precision is fp16"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "dynamo_backend is INDUCTOR"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version is 1, must be 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
    ],
)
def test_unsupported_launch_settings_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name in ("ACCELERATE_TORCH_DEVICE", "DS_ACCELERATOR"):
        monkeypatch.setenv(name, "cpu")  # what build_engine sets is undone after the test
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        build_engine(Config())


def test_launch_configs_name_existing_files() -> None:
    for path in ROOT.glob("launch/**/*.yaml"):
        content = yaml.safe_load(path.read_text())
        if content["distributed_type"] == "DEEPSPEED":
            file = content["deepspeed_config"]["deepspeed_config_file"]
            assert json.loads((ROOT / file).read_text())["zero_optimization"]["stage"] in (1, 2, 3)
        assert content["num_machines"] > 1 or path.stem == "single" or content["main_process_port"] == 0
