"""tools/benchmark/scaling.py: parameter counts, volumes and the alpha-beta model."""

from __future__ import annotations

from pathlib import Path

import pytest
from paths import ROOT

from tools.benchmark import scaling


def test_parameter_counts() -> None:
    """Published counts: torchvision's ResNet-50 has 25,557,032 parameters with 1000 classes, VGG16 14,714,688 in its
    convolutions, timm's deit_small_patch16_224 22,050,664 with 1000 classes (385 a class in its head)."""
    by_name = {backbone.name: backbone for backbone in scaling.backbones()}
    assert by_name["Waterbirds, ResNet-50"].parameters == 25_557_032 - 998 * 2049
    assert scaling.vgg16_cam(200)[0] == 14_714_688 + (512 * 1024 * 9 + 1024) + 200 * 1025
    assert scaling.deit_s_sat(200)[0] == 22_050_664 - 1000 * 385 + 2 * 384 + 200 * (9 * 384 + 1)
    assert len(by_name) == 6


def test_volume_of_a_ring() -> None:
    """Counted by hand: a ring all-reduce sends N - 1 pieces of P/N twice."""
    backbone = scaling.Backbone("x", parameters=1200, buffers=0, label="hard", batch=8)
    assert scaling.volume(backbone, "DDP", 4) == 2 * 3 * (1200 // 4) * 4
    assert scaling.volume(backbone, "ZeRO-3", 4) == 3 * 3 * (1200 // 4) * 4
    assert scaling.volume(backbone, "DDP", 1) == 0


def test_model_of_a_step() -> None:
    """10 s for the bytes, no latency: hidden behind 2/3 of a plain step of 30 s, added to a guided one of 60 s."""
    backbone = scaling.Backbone("x", parameters=1000, buffers=0, label="hard", batch=8)
    machine = scaling.Machine(bandwidth=scaling.volume(backbone, "DDP", 2) / 10, latency=0.0, step_time=30.0)
    assert scaling.efficiency(backbone, "DDP", 2, machine, guided=False) == 1.0
    assert scaling.efficiency(backbone, "DDP", 2, machine, guided=True) == pytest.approx(60 / 70)
    assert scaling.speedup(backbone, "DDP", 2, machine) == pytest.approx(60 / (30 + 10))
    assert scaling.speedup(backbone, "DDP", 3, machine) is None  # 8 samples on 3 devices


def test_tables_of_the_documentation_are_current(tmp_path: Path) -> None:
    copy = tmp_path / "scaling.md"
    copy.write_text((ROOT / "docs" / "scaling.md").read_text())
    assert scaling.main(["--write", str(copy)]) == 0
    hint = "run python -m tools.benchmark.scaling --write docs/scaling.md"
    assert copy.read_text() == (ROOT / "docs" / "scaling.md").read_text(), hint
