"""The doctor on machines that are not this one: what it asks of the outside is replaced, what it says is looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from paths import ROOT

from provscale.doctor import experiments, machine, packages
from provscale.doctor.__main__ import main
from provscale.doctor.finding import Finding, guarded

Run = Callable[..., tuple[int, dict[str, dict[str, str]]]]
CARDS = "NVIDIA H100 80GB HBM3, 81559 MiB, 550.54\nNVIDIA H100 80GB HBM3, 81559 MiB, 550.54"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the doctor; its exit code, and what it says by subject."""
    monkeypatch.setattr(machine, "output_of", lambda *_: None)

    def doctor(*words: str) -> tuple[int, dict[str, dict[str, str]]]:
        code = main(["--json", "--dir", str(tmp_path), *words])
        rows = json.loads(capsys.readouterr().out)
        assert all(row["state"] in ("ok", "warning", "missing") for row in rows)
        return code, {row["about"]: row for row in rows}

    return doctor


def card(monkeypatch: pytest.MonkeyPatch, driver: str) -> None:
    """Two GPUs whose driver knows the given CUDA version."""
    printed = {1: f"| NVIDIA-SMI 550.54    Driver Version: 550.54    CUDA Version: {driver} |", 3: CARDS}
    monkeypatch.setattr(machine, "output_of", lambda *words: printed.get(len(words)) if "smi" in words[0] else None)


def test_without_a_gpu_nothing_required_is_missing(run: Run) -> None:
    code, found = run()
    assert code == 0
    assert found["GPU"]["state"] == "warning"
    assert "gloo" in found["processes"]["text"]
    assert found["packages"]["state"] == "ok"
    assert found["data digits"]["state"] == "ok"
    assert found["Table 8 cub-vgg16"]["state"] == "missing"
    assert found["Table 8 cub-vgg16"]["fix"].startswith("--root cub=DIR")


def test_driver_older_than_pytorch_is_broken(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, "11.8")
    monkeypatch.setattr(machine, "torch_cuda", lambda: "13.0")
    code, found = run()
    assert code == 1
    assert found["CUDA"]["text"] == "the driver knows CUDA 11.8, PyTorch needs 13.0"
    assert found["GPU"]["text"].startswith("2 x NVIDIA H100")


def test_cpu_only_pytorch_beside_gpus_is_broken(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, "13.0")
    monkeypatch.setattr(machine, "torch_cuda", lambda: None)
    code, found = run()
    assert code == 1
    assert "CPU-only build" in found["CUDA"]["text"]


def test_gpus_that_pytorch_sees(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    card(monkeypatch, "13.0")
    monkeypatch.setattr(machine, "torch_cuda", lambda: "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 5))
    for file in experiments.FILES["cub"]:
        (tmp_path / file).touch()
    code, found = run("--root", f"cub={tmp_path}")
    assert code == 0
    assert found["processes"]["text"] == "several on GPUs talk over NCCL 2.27.5"
    assert found["Table 8 cub-vgg16"]["state"] == "ok"
    assert "--cfg cub_vgg16_cutmix" in found["Table 8 cub-vgg16"]["text"]


def test_what_torch_was_built_for_is_read_without_importing_it() -> None:
    import torch

    assert machine.torch_cuda() == torch.version.cuda


def test_packages_that_are_missing_or_too_old(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"timm": "0.9.2", "rich": None}
    installed = packages.installed
    monkeypatch.setattr(packages, "installed", lambda name: versions.get(name, installed(name)))
    code, found = run()
    assert code == 1
    assert found["packages"]["text"] in ("rich is not installed", "timm 0.9.2 is not >=1.0.20")
    assert "timm 0.9.2 (tested: " in found["versions"]["text"]
    wrong = [one for one in packages.packages() if one.required]
    assert [one.fix for one in wrong] == ["pip install 'timm>=1.0.20'", "pip install 'rich>=13.7'"]


def test_local_version_labels_are_no_difference(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.15.0+cu130 is the tested 2.15.0."""
    installed = packages.installed
    pins = packages.tested_versions(ROOT / "constraints.txt")
    monkeypatch.setattr(
        packages, "installed", lambda name: pins["torch"] + "+cu130" if name == "torch" else installed(name)
    )
    _, found = run()
    assert "torch" not in found["versions"]["text"]


def test_login_cluster_and_disk(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr(machine.shutil, "which", lambda name: None if name == "srun" else f"/usr/bin/{name}")
    monkeypatch.setattr(machine, "FREE_GB", 1e9)
    _, found = run()
    assert found["W&B"]["state"] == "ok"
    assert found["SLURM"]["text"].startswith("srun not found")
    assert found["disk"]["state"] == "warning"
    monkeypatch.setattr(machine.os, "access", lambda *_: False)
    code, found = run()
    assert code == 1
    assert found["disk"]["text"] == f"{tmp_path} cannot be written"


def test_data_that_is_half_there(run: Run, tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").touch()
    _, found = run("--root", f"waterbirds={tmp_path}", "--root", "iwildcam=/nowhere")
    assert found["data waterbirds"]["text"] == (f"{tmp_path} lacks edits/metadata.csv, for waterbirds_resnet50_alia")
    assert found["data iwildcam"]["text"].startswith("/nowhere is no folder")


def test_every_config_has_a_known_data_set() -> None:
    """A new data set of a config needs a line in `experiments.FILES`, or in `EMBEDDED`."""
    for name, content in experiments.config_files().items():
        assert (content.get("data") or {}).get("name", "digits") in {*experiments.FILES, *experiments.EMBEDDED}, name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--root", "cub"], "--root: is 'cub', must be NAME=DIR"),
        (["--root", "cbu=x"], "no config has a data set 'cbu', did you mean 'cub'?"),
        (["--rot", "cub=x"], "--rot"),
    ],
)
def test_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_a_check_that_fails_is_a_finding() -> None:
    def broken() -> object:
        yield Finding("ok", "first", "")
        raise RuntimeError("no driver\nand more")

    first, second = guarded("GPU", broken)  # type: ignore[arg-type]
    assert first.about == "first"
    assert second == Finding("warning", "GPU", "could not be checked (RuntimeError: no driver)")


def test_in_an_environment_without_its_packages(tmp_path: Path) -> None:
    """No traceback, exit code 1, and a line for each; and where all is well PyTorch is not imported."""
    lacking = (
        "import sys; sys.modules.update(dict.fromkeys(['packaging', 'yaml', 'numpy', 'rich', 'jsonargparse', 'torch']))"
    )
    start = "from provscale.doctor.__main__ import main; code = main([])"
    done = subprocess.run(
        [sys.executable, "-c", f"{lacking}; {start}; sys.exit(code)"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert "missing  packages: packaging is not installed  ->  pip install packaging" in done.stdout
    assert done.stderr == ""
    light = f"import sys; {start}; sys.exit(bool({{'torch', 'timm', 'wandb', 'datasets'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", light], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
