"""Networks by name, pretrained weights, class activation maps."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from networks import CLASSES, random_sample, relative, small_cnn
from safetensors.torch import save_file

from provscale.config import ModelConfig
from provscale.errors import UserError
from provscale.guidance.step import GuidedStep
from provscale.models import build_model
from provscale.predictions import score_map
from provscale.sample import Sample


def test_timm_network_by_name() -> None:
    built = build_model(ModelConfig("test_resnet", options={"drop_rate": 0.3}), num_classes=7)
    assert built.network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert built.network.drop_rate == 0.3
    assert built.new_parameters == frozenset()


@pytest.mark.parametrize("targets", [1, 2])
def test_channels_last_gives_the_same_step(targets: int) -> None:
    """The layout reaches the activations; losses and gradients agree within the kernels' rounding, FP32."""
    sample = random_sample(targets, size=64)
    steps = []
    for channels_last in (False, True):
        torch.manual_seed(0)
        network = build_model(ModelConfig("test_resnet", channels_last=channels_last), num_classes=CLASSES).network
        shown = network.forward_features(sample.inputs)
        assert shown.is_contiguous(memory_format=torch.channels_last) == channels_last
        steps.append(GuidedStep(network.train(), 0.1))
    losses = [step(sample)["loss"] for step in steps]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    expected, found = (torch.cat([value.grad.flatten() for value in step.parameters()]) for step in steps)
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("kind", ["safetensors", "plain", "state_dict", "model"])
def test_weights_from_a_file(tmp_path: Path, kind: str) -> None:
    """All tensors but the classifier's, whose number of classes differs, come from the file."""
    donor = timm.create_model("test_resnet", num_classes=5).state_dict()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_file(donor, path)
    else:
        torch.save(donor if kind == "plain" else {kind: donor}, path)
    built = build_model(ModelConfig("test_resnet", pretrained=str(path)), num_classes=3)
    assert built.new_parameters == {"fc.weight", "fc.bias"}
    state = built.network.state_dict()
    assert all(torch.equal(state[name], donor[name]) for name in donor if not name.startswith("fc."))
    same = build_model(ModelConfig("test_resnet", pretrained=str(path)), num_classes=5)
    assert same.new_parameters == frozenset()
    assert torch.equal(same.network.state_dict()["fc.weight"], donor["fc.weight"])


def test_weights_that_cannot_be_used(tmp_path: Path) -> None:
    def refusal(path: Path, name: str = "test_resnet") -> str:
        with pytest.raises(UserError) as caught:
            build_model(ModelConfig(name, pretrained=str(path)), 2)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "nothing.pt does not exist" in refusal(tmp_path / "nothing.pt")
    for name in ("broken.pt", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"no weights")
        assert "cannot be read as weights" in refusal(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    assert "holds no state dict" in refusal(tmp_path / "list.pt")
    torch.save({"model": small_cnn()}, tmp_path / "whole.pt")
    assert "cannot be read as weights" in refusal(tmp_path / "whole.pt"), "a pickle that could run code"
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "vit.safetensors")
    assert "another model's weights" in refusal(tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match="no package carries weights of 'test_resnet'"):
        build_model(ModelConfig("test_resnet", pretrained="package"), 2)


def test_unknown_model_and_option() -> None:
    with pytest.raises(UserError, match=r"unknown model 'test_resnt', did you mean 'test_resnet'"):
        build_model(ModelConfig("test_resnt"), 2)
    with pytest.raises(UserError, match=r"does not fit test_resnet: .*nonsense"):
        build_model(ModelConfig("test_resnet", options={"nonsense": 1}), 2)


def test_class_activation_map_averages_to_the_logit() -> None:
    """Global average pooling and a linear layer commute: mean of the map + bias = logit (Zhou et al., 2016, eq. 2)."""
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=4).eval()
    classes = torch.tensor([0, 3, 1])
    with torch.no_grad():
        network.fc.bias.uniform_(-1, 1)
        inputs = torch.randn(3, 3, 64, 64)
        found = score_map(network, Sample.real(inputs, classes))
        logits, maps = found["logits"], found["score_map"]
        torch.testing.assert_close(logits, network(inputs))
    assert maps.shape[0] == 3
    assert maps.dim() == 3
    expected = logits.gather(1, classes[:, None])[:, 0] - network.fc.bias[classes]
    torch.testing.assert_close(maps.mean(dim=(1, 2)), expected)


def test_networks_without_class_activation_maps() -> None:
    classes = torch.zeros(1, dtype=torch.long)
    with pytest.raises(UserError, match="Sequential has neither"):
        score_map(small_cnn(), Sample.real(torch.zeros(1, 3, 16, 16), classes))
    with pytest.raises(UserError, match="features of shape"):
        score_map(timm.create_model("test_vit", img_size=32), Sample.real(torch.zeros(1, 3, 32, 32), classes))
