"""An exported folder gives the same logits, bit for bit, in timm and in provscale; its card says what the run was."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_runs import arguments, same, train
from torch import nn

from provscale.command_line import parse
from provscale.config import ModelConfig
from provscale.models import build_model
from provscale.models.build import create
from tools.export import main

OWN = {
    "vgg16_cam": ({"map_size": 28}, (3, 32, 32)),
    "deit_small_sat": ({"img_size": 32, "embed_dim": 24, "depth": 3, "num_heads": 3}, (3, 32, 32)),
    "skp": ({"width": 8}, (4, 5, 51)),
}
"""Options of provscale's own networks, small, and a sample's shape."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a timm network, with guidance."""
    return train(tmp_path_factory.mktemp("export"), "guided", train__epochs=1)


def logits(network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = network.eval()(inputs)
    return output


def test_timm_loads_the_same_network(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "shared" / "digits"
    assert main([str(run), "--out", str(out)]) == 0
    weights = load_file(run / "checkpoints" / "best.safetensors")
    trained = create(parse(["--cfg", str(run / "config.yaml")]).model, 2)
    trained.load_state_dict(weights)
    inputs = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loaded = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert torch.equal(logits(loaded, inputs), logits(trained, inputs))
    assert loaded.pretrained_cfg["input_size"] == (3, 32, 32)
    assert tuple(loaded.pretrained_cfg["mean"]) == (0.5, 0.5, 0.5)
    assert loaded.pretrained_cfg["label_names"] == ["3", "5"]
    again = build_model(ModelConfig("test_resnet", pretrained=str(out)), num_classes=2)
    assert torch.equal(logits(again.network, inputs), logits(trained, inputs))
    assert again.new_parameters == frozenset()


def test_card_says_what_the_run_was(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "digits"
    assert main([str(run), "--out", str(out), "--weights", "final", "--licence", "cc-by-4.0"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "config.json",
        "config.yaml",
        "model.safetensors",
    ]
    assert (out / "config.yaml").read_bytes() == (run / "config.yaml").read_bytes()
    assert same(load_file(out / "model.safetensors"), load_file(run / "checkpoints" / "final.safetensors"))
    text = (out / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "license": "cc-by-4.0",
        "tags": ["provscale"],
    }
    tested = json.loads((run / "summary.json").read_text())["test"]["last"]
    assert f"| accuracy | {tested['accuracy']:.2f} |" in body
    assert "guidance: alpha 0.01, mask provenance" in body
    assert "epoch 1 of 1, the last; the best epoch is chosen by `worst_group` on validation" in body
    assert "| classes | 3, 5 |" in body
    assert f"torch {importlib.metadata.version('torch')}" in body


@pytest.mark.parametrize("name", OWN)
def test_own_networks_load_by_pretrained(name: str, run: Path, tmp_path: Path) -> None:
    """The run folder is another network's with this one's weights and config, of which the rest is independent."""
    options, shape = OWN[name]
    torch.manual_seed(0)
    network = create(ModelConfig(name, options=dict(options)), num_classes=5)
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    for file in ("summary.json", "metrics.jsonl"):
        shutil.copyfile(run / file, folder / file)
    save_file(network.state_dict(), folder / "checkpoints" / "best.safetensors")
    config = parse(arguments(tmp_path, "run", model__name=name, model__options=json.dumps(options)))
    (folder / "config.yaml").write_text(config.to_yaml())
    assert main([str(folder), "--out", str(tmp_path / "out")]) == 0
    loaded = build_model(ModelConfig(name, pretrained=str(tmp_path / "out"), options=dict(options)), num_classes=5)
    inputs = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(logits(loaded.network, inputs), logits(network, inputs))
    assert loaded.new_parameters == frozenset()
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (content["architecture"], content["library_name"], content["num_classes"]) == (name, "provscale", 5)


def break_weights(run: Path) -> None:
    path = run / "checkpoints" / "best.safetensors"
    state = load_file(path)
    del state[next(name for name in state if name.endswith("weight"))]
    save_file(state, path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"--weights": "bset"}, "--weights: is 'bset', did you mean 'best'?"),
        ({"--out": "used"}, "used holds something already; choose another folder"),
        ({"run": "none"}, "none: is no folder of a finished run"),
        ({"break": ""}, "best.safetensors: does not fit"),
    ],
)
def test_mistakes_leave_nothing(
    words: dict[str, Any], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    given = run
    if "break" in words:
        given = Path(shutil.copytree(run, tmp_path / "broken"))
        break_weights(given)
    if "run" in words:
        given = tmp_path / words["run"]
    before = sorted(tmp_path.iterdir())
    out = tmp_path / words.get("--out", "out")
    assert main([str(given), "--out", str(out), "--weights", words.get("--weights", "best")]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
