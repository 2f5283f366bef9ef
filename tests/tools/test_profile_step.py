"""The profile's classification, that its parts add up to the step, and the files it writes."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from provscale.guidance import objective
from provscale.guidance.step import GuidedStep


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    from tools.benchmark import profile_step

    return profile_step


@pytest.mark.parametrize(
    ("name", "callers", "kind"),
    [
        ("aten::mkldnn_convolution", (), "convolution"),
        ("aten::_slow_conv2d_forward", (), "convolution"),
        ("aten::cudnn_convolution", (), "convolution"),
        ("aten::convolution_backward", (), "convolution backward"),
        ("aten::_slow_conv2d_backward", (), "convolution backward"),
        ("aten::addmm", ("LinearBackward",), "matrix product"),
        ("aten::mm", ("GeluBackward",), "matrix product"),
        ("aten::native_batch_norm_backward", (), "normalisation"),
        ("aten::native_layer_norm", (), "normalisation"),
        ("aten::mul", ("BatchNormBackwardBackward",), "normalisation"),
        ("aten::sum", ("aten::mean", "NativeLayerNormBackwardBackward"), "normalisation"),
        ("aten::mul", ("MaskedBatchNormBackward", "GeluBackward"), "normalisation"),
        ("aten::_softmax", (), "activation, softmax"),
        ("aten::threshold_backward", (), "activation, softmax"),
        ("aten::relu_", (), "activation, softmax"),
        ("aten::mul", ("GeluBackwardBackward",), "activation, softmax"),
        ("aten::max_pool2d_with_indices", (), "pooling, maxima over a dimension"),
        ("aten::amax", (), "pooling, maxima over a dimension"),
        ("aten::add_", (), "other element-wise"),
        ("aten::addcmul", ("autograd::engine::evaluate_function: BatchNormBackward",), "other element-wise"),
        ("aten::copy_", (), "copy, cast, layout"),
        ("aten::_to_copy", (), "copy, cast, layout"),
        ("aten::index_put_", (), "copy, cast, layout"),
        ("aten::sum", (), "reduction"),
        ("aten::linalg_vector_norm", (), "reduction"),
        ("aten::something_new", (), "other operations"),
    ],
)  # fmt: skip
def test_kinds(tool: ModuleType, name: str, callers: tuple[str, ...], kind: str) -> None:
    assert tool.kind_of(name, callers) == kind


def event(name: str, start: int, end: int, own: float, parent: Any = None, device: Any = DeviceType.CPU) -> Any:
    return SimpleNamespace(
        name=name, device_type=device, cpu_parent=parent, self_cpu_time_total=own, self_device_time_total=2 * own,
        time_range=SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start),
    )  # fmt: skip


@pytest.mark.parametrize("on_cuda", [False, True])
def test_events_add_up(tool: ModuleType, on_cuda: bool) -> None:
    """Made by hand, in microseconds; on CUDA an operation counts with its kernels' time, here twice the other."""
    node = event("GeluBackwardBackward0", 7000, 7900, 900)
    events = [
        event("parameter gradients", 0, 9000, 0), event("forward", 1000, 3000, 0),
        event("input gradients", 3000, 6000, 0), event("hand-over of gradients", 9000, 10000, 0),
        event("aten::mm", 1500, 2000, 500), event("aten::mm", 4000, 4700, 700), node,
        event("aten::mul", 7100, 7300, 200, node), event("aten::mul", 9100, 9400, 300),
        event("aten::zero_", 20000, 20100, 100),  # after the step
        event("sgemm", 1500, 2000, 500, device=DeviceType.CUDA),
    ]  # fmt: skip
    found = tool.summarise(events, on_cuda)
    factor = 2 if on_cuda else 1
    assert found.total == 10
    assert found.phases == {
        "forward": 2, "input gradients": 3, "parameter gradients": 4, "hand-over of gradients": 1
    }  # fmt: skip
    assert found.kinds["matrix product"] == pytest.approx(1.2 * factor)
    assert found.kinds["activation, softmax"] == pytest.approx(0.2 * factor)
    assert found.kinds["other element-wise"] == pytest.approx(0.3 * factor)
    assert sum(found.kinds.values()) == pytest.approx(found.total)
    assert found.outside["forward"] == pytest.approx(2 - 0.5 * factor)
    assert sum(found.outside.values()) == pytest.approx(found.kinds["outside operations"])


def test_a_real_step_adds_up_and_leaves_the_package_as_it_was(tool: ModuleType) -> None:
    case = tool.Case("test_resnet", 2, 32)
    functions = objective.run_network, objective.guidance_loss
    step = GuidedStep(tool.build(case).train(), 0.1)
    sample = tool.make_sample(case, "soft", torch.device("cpu"))
    tool.run_step(step, sample, 0.1)
    found = tool.profile_step(step, sample, 0.1)
    assert (objective.run_network, objective.guidance_loss) == functions
    for parts in (found.kinds, found.phases):
        assert sum(parts.values()) == pytest.approx(found.total)
        assert min(parts.values()) >= 0
    assert found.kinds["convolution backward"] > 0
    assert found.kinds["other operations"] < 0.05 * found.total
    assert "input gradients" not in tool.profile_step(step, sample, 0.0).phases


def test_a_run_writes_json_picture_and_document(tool: ModuleType, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(tool, "QUICK", [tool.Case("test_resnet", 2, 32), tool.Case("other", 2, 32)])
    document = tmp_path / "performance.md"
    document.write_text("before\n<!-- profile -->\nold\n<!-- /profile -->\nafter\n")
    arguments = ["--quick", "--device", "cpu", "--rounds", "1", "--backbones", "resnet", "--batch", "test_resnet=3",
                 "--out", str(tmp_path), "--doc", str(document)]  # fmt: skip
    assert tool.main(arguments) == 0
    content = json.loads((tmp_path / "profile-quick-cpu.json").read_text())
    (arms,) = content["rows"].values()
    assert list(content["rows"]) == ["test_resnet, 3 x 32 px, soft"]
    assert content["about"]["torch"] == torch.__version__
    for arm in arms.values():
        assert sum(arm["kinds"].values()) == pytest.approx(arm["total"])
        assert arm["unprofiled"] > 0
    assert 1000 < (tmp_path / "profile-quick-cpu.svg").stat().st_size < 60_000
    text = document.read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "| **whole step** |" in text
    assert "old" not in text
    assert "input gradients" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbones", "nothing"], "--backbones"),
        (["--batch", "resnet50"], "must be WORD=NUMBER"),
        (["--batch", "resnet50=1"], "a number of 2 or more"),
        (["--backbones", "vgg", "--batch", "resnet50=4"], "--batch: is 'resnet50=4'"),
    ],
)
def test_mistakes_are_one_line(tool: ModuleType, arguments: list[str], message: str, capsys) -> None:
    assert tool.main(["--quick", "--device", "cpu", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_phase_on_cuda_ends_when_the_device_is_done(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its kernels would run outside it, and the time outside operations would be negative."""
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append("device"))
    case = tool.Case("test_resnet", 2, 32)
    step = GuidedStep(tool.build(case).train(), 0.1)
    sample = tool.make_sample(case, "soft", torch.device("cpu"))
    with tool.phases_recorded(on_cuda=True):
        step(sample, alpha=0.1)
    assert waited == ["device", "device"]  # forward pass, input gradients
    with tool.phases_recorded(on_cuda=False):
        step(sample, alpha=0.1)
    assert len(waited) == 2
