"""Where an engine trains and what it refuses before anything is loaded; and the layout of weights on each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from paths import ROOT
from safetensors.torch import load_file

from provscale.config import Config
from provscale.engine import Engine, select
from provscale.engine.select import build_engine, check_device
from provscale.errors import UserError
from provscale.guidance.options import GuidanceOptions
from provscale.guidance.step import GuidedStep
from provscale.models import build_model

VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "ACCELERATE_TORCH_DEVICE", "DS_ACCELERATOR", "SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS",
    "WORLD_SIZE",
)  # fmt: skip


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without GPU and driver, started plainly."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(select, "DRIVER", tmp_path / "nvidiactl")


def refusal() -> str:
    with pytest.raises(UserError) as caught:
        check_device()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.usefixtures("no_gpu")
def test_one_plain_process_trains_on_the_cpu() -> None:
    check_device()


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS"])
def test_granted_gpus_that_cannot_be_used_are_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "2")
    message = refusal()
    assert "SLURM granted GPUs (2), but PyTorch finds no usable GPU" in message
    assert f"built for CUDA {torch.version.cuda}" in message
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    check_device()


@pytest.mark.usefixtures("no_gpu")
def test_a_driver_that_does_not_fit_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(torch.version, "cuda", None)
    message = refusal()
    assert "NVIDIA's driver is installed" in message
    assert "built for CPUs only" in message


@pytest.mark.usefixtures("no_gpu")
def test_several_processes_are_meant_for_gpus_unless_these_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the configs under launch/cpu hide them."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "4 processes were started" in refusal()
    for path in sorted((ROOT / "launch" / "cpu").glob("*.yaml")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", yaml.safe_load(path.read_text())["gpu_ids"])
        check_device()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert "4 processes were started" in refusal()


@pytest.mark.parametrize("executor", ["cuda_graph", "cuda_graph_compiled"])
@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_engines_that_move_parameters_refuse_a_recorded_step(
    engine: str, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start, before a process group, data or a network is made."""
    for name in ("ACCELERATE_TORCH_DEVICE", "DS_ACCELERATOR"):
        monkeypatch.setenv(name, "cpu")  # what build_engine sets is undone after the test
    variables = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    if engine == "zero3":
        file = str(ROOT / "launch" / "zero3.json")
        variables = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": file}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = Config(guidance=GuidanceOptions(executor=executor))
    with pytest.raises(UserError, match=rf"guidance.executor: is {executor}, .* moves them at every step; use eager"):
        build_engine(config)


def test_channels_last_is_saved_and_read_again(tmp_path: Path) -> None:
    """By one process; the file is contiguous, the network that reads it keeps its own layout."""
    config = Config()
    config.model.name, config.model.channels_last = "test_resnet", True
    engine = Engine(config)
    step = GuidedStep(build_model(config.model, 3).network, 0.1)
    engine.prepare(step, torch.optim.SGD(step.parameters(), lr=0.1))
    weight = next(step.parameters())
    expected = weight.detach().clone()
    engine.save(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    with torch.no_grad():
        weight.zero_()
    engine.load(tmp_path)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=0)
    name, _ = next(step.network.named_parameters())
    torch.testing.assert_close(saved[name], expected, rtol=0, atol=0)
    assert saved[name].is_contiguous()
