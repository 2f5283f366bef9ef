"""The CUB configs through the entry points, from images on disk to localisation figures, both arms, in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from cub_folder import make_cub
from paths import ROOT
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import vgg

from provscale import evaluate as evaluate_entry
from provscale.train import main
from tools import show_localisation

SAT = {"img_size": 32, "embed_dim": 24, "depth": 3, "num_heads": 3}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What makes the configs small; weights as torchvision and the original DeiT name them."""
    folder = tmp_path_factory.mktemp("cub")
    torch.manual_seed(0)
    features = vgg.make_layers(vgg.cfgs["D"]).state_dict()
    save_file({f"features.{name}": value for name, value in features.items()}, folder / "vgg16.safetensors")
    deit = timm.create_model("deit_small_patch16_224", num_classes=10, **SAT)
    torch.save({"model": deit.state_dict()}, folder / "deit.pth")
    return [
        f"--data.root={make_cub(folder / 'CUB_200_2011')}", f"--run.dir={folder / 'runs'}", "--data.image_size=32",
        "--data.workers=0", "--data.batch_size=4", "--train.max_steps=3", "--tracking.wandb=disabled",
        "--tracking.images=2", "--synthesis.probability=1", "--evaluation.batch_size=4",
    ]  # fmt: skip


def small(name: str, words: list[str]) -> list[str]:
    """The command line of a config in small."""
    folder = Path(words[1].split("=")[1]).parent
    if "deit" in name:
        own = [f"--model.options={json.dumps(SAT)}", f"--model.pretrained={folder / 'deit.pth'}"]
    else:
        own = [f"--model.pretrained={folder / 'vgg16.safetensors'}"]
    return [f"--cfg={ROOT / 'configs' / f'{name}.yaml'}", *words, *own]


def rows(words: list[str], run: str) -> list[dict[str, Any]]:
    folder = Path(words[1].split("=")[1]) / run
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["cub_vgg16_cutmix", "cub_deit_s_cutmix"])
def test_both_arms(name: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With the start-up self-check. Best epoch on CUBv2, figures on test; weights evaluate to the same numbers."""
    for arm, options in (("guided", []), ("baseline", ["--guidance.alpha=0"])):
        run = f"{name}-{arm}"
        assert main([*small(name, words), f"--run.name={run}", *options]) == 0
        found = rows(words, run)
        steps = [row for row in found if row["kind"] == "train"]
        assert len(steps) == 3
        assert all((row["loss_guidance"] > 0) == (arm == "guided") for row in steps)
        assert all(("loss_area" in row and "loss_norm" in row) == ("deit" in name) for row in steps)
        assert all(row["split"] == "validation" for row in found if row["kind"] == "validation")
        tests = {row["at"]: row for row in found if row["kind"] == "test"}
        assert set(tests) == {"best", "last"}
        wanted = {"maxboxacc", "maxboxacc/iou30", "maxboxacc_v1", "maxboxacc_v1/top1", "gradient_energy", "accuracy"}
        assert wanted | ({"sat/gt_known", "sat/iou_mean"} if "deit" in name else set()) <= tests["best"].keys()
    folder = Path(words[1].split("=")[1]) / f"{name}-guided"
    capsys.readouterr()
    command = ["--cfg", str(folder / "config.yaml"), "--weights", str(folder / "checkpoints" / "final.safetensors")]
    assert evaluate_entry.main([*command, "--json", "--carry-thresholds"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert {"maxboxacc_at_validation_thresholds", "maxboxacc_v1_at_validation_threshold/top1"} <= metrics.keys()
    last = next(row for row in rows(words, f"{name}-guided") if row["kind"] == "test" and row["at"] == "last")
    assert metrics == {key: last[key] for key in last if key not in ("kind", "at", "step", "epoch")}


def test_pictures_of_both_arms(words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Score map, boxes and gradient side by side; two images, two runs, two columns each."""
    folder = Path(words[1].split("=")[1])
    for arm, alpha in (("guided", "0.01"), ("baseline", "0")):
        command = small("cub_deit_s_cutmix", words)
        assert main([*command, f"--run.name=shown-{arm}", f"--guidance.alpha={alpha}"]) == 0
    runs = [str(folder / f"shown-{arm}") for arm in ("guided", "baseline")]
    capsys.readouterr()
    assert show_localisation.main([*runs, "--images", "0", "4", "--out", str(tmp_path / "a.png")]) == 0
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (968, 528)
    for mistake, message in (
        (["--images", "9"], "--images: 9 is out of range"),
        (["--weights", "x"], "does not exist"),
    ):
        assert show_localisation.main([*runs, *mistake, "--out", str(tmp_path / "b.png")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("synthesis", ["resizemix", "puzzlemix"])
def test_other_mixtures_by_name(synthesis: str, words: list[str]) -> None:
    """PuzzleMix with SAT's network: its saliency is that of evaluation mode, without the network's own losses."""
    run = f"sat-{synthesis}"
    command = small("cub_deit_s_cutmix", words)
    assert main([*command, f"--run.name={run}", f"--synthesis.name={synthesis}", "--synthesis.options={}"]) == 0
    steps = [row for row in rows(words, run) if row["kind"] == "train"]
    assert len(steps) == 3
    assert all(row["loss_guidance"] > 0 for row in steps)


def test_weights_of_another_network_end_with_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(words[1].split("=")[1])
    command = small("cub_vgg16_cutmix", words)
    command[-1] = f"--model.pretrained={folder.parent / 'deit.pth'}"
    assert main([*command, "--run.name=wrong"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "deit.pth" in error
    assert not (folder / "wrong").exists()
