"""`vgg16_cam` and `deit_small_sat`: against float64 NumPy from their published formulas, and twice differentiable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from networks import CLASSES, small_sat
from numpy.typing import NDArray
from safetensors.torch import save_file
from scipy.stats import norm
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.models import vgg

from provscale.config import ModelConfig
from provscale.errors import UserError
from provscale.models import DeiTSmallSAT, build_model
from provscale.models.deit_sat import smoothing_weights

Array = NDArray[np.float64]
SMALL = {"img_size": 32, "embed_dim": 24, "depth": 3, "num_heads": 3, "masked_blocks": 2}


def weights_of(network: nn.Module) -> dict[str, Array]:
    return {name: value.detach().numpy() for name, value in network.state_dict().items()}


def conv3x3(images: Array, weight: Array, bias: Array | float = 0.0) -> Array:
    """[B, C, h, w] with [K, C, 3, 3], one position after the other; zeros around."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.empty((len(images), len(weight), *images.shape[2:]))
    for i in range(images.shape[2]):
        for j in range(images.shape[3]):
            out[:, :, i, j] = np.tensordot(padded[:, :, i : i + 3, j : j + 3], weight, ([1, 2, 3], [1, 2, 3])) + bias
    return out


# ---- vgg16_cam ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("map_size", "side"), [(14, 2), (28, 4)])
def test_vgg_head_and_map_are_the_formulas(map_size: int, side: int) -> None:
    torch.manual_seed(0)
    network = build_model(ModelConfig("vgg16_cam", options={"map_size": map_size}), 5).network.double().eval()
    with torch.no_grad():
        network.fc.bias.uniform_(-1, 1)
        inputs = torch.randn(2, 3, 32, 32, dtype=torch.float64)
        features = network.features(inputs)
        assert features.shape == (2, 512, side, side)
        classes = torch.tensor([3, 0])
        logits, score_map = network.logits_and_score_map(inputs, classes)
        torch.testing.assert_close(network(inputs), logits)
    weights = weights_of(network)
    maps = np.maximum(conv3x3(features.numpy(), weights["conv6.weight"], weights["conv6.bias"]), 0)
    np.testing.assert_allclose(logits, maps.mean(axis=(2, 3)) @ weights["fc.weight"].T + weights["fc.bias"], rtol=1e-9)
    expected = [(maps[row] * weights["fc.weight"][k, :, None, None]).mean(axis=0) for row, k in enumerate((3, 0))]
    np.testing.assert_allclose(score_map, np.array(expected), rtol=1e-9, atol=1e-12)


def test_vgg_convolutions_are_torchvisions(tmp_path: Path) -> None:
    """torchvision's own features, cut before the last pooling, from a file with torchvision's names; new layers are
    those of the head."""
    torch.manual_seed(0)
    donor = vgg.make_layers(vgg.cfgs["D"])
    weights = {f"features.{name}": value for name, value in donor.state_dict().items()}
    torch.save({**weights, "classifier.6.weight": torch.zeros(2, 2)}, tmp_path / "vgg16.pth")
    built = build_model(ModelConfig("vgg16_cam", pretrained=str(tmp_path / "vgg16.pth")), 5)
    assert built.new_parameters == {"conv6.weight", "conv6.bias", "fc.weight", "fc.bias"}
    inputs = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(built.network.features(inputs), donor[:-1](inputs))


def test_names_of_timm() -> None:
    """Every backbone tensor has timm's name and shape; built without memory, as VGG16 has 138 million weights."""
    for ours, theirs, options in (
        ("vgg16_cam", "vgg16", {"map_size": 28}),
        ("deit_small_sat", "deit_small_patch16_224", {}),
    ):
        with torch.device("meta"):
            expected = {name: value.shape for name, value in timm.create_model(theirs).state_dict().items()}
        network = build_model(ModelConfig(ours, options=options), 7).network
        for name, value in network.state_dict().items():
            assert name.startswith(network.new_layers) or value.shape == expected[name]
        assert timm.is_model(network.hub_name)


@pytest.mark.parametrize(("layers", "normalised"), [("E", False), ("D", True)], ids=["vgg19", "vgg16_bn"])
def test_weights_of_a_neighbour_are_refused(tmp_path: Path, layers: str, normalised: bool) -> None:
    """VGG19 shares most names and shapes with VGG16; loading what fits would leave gaps."""
    features = vgg.make_layers(vgg.cfgs[layers], batch_norm=normalised).state_dict()
    path = tmp_path / "other.safetensors"
    save_file({f"features.{name}": value for name, value in features.items()}, path)
    with pytest.raises(UserError, match=r"model\.pretrained: .*another model's weights"):
        build_model(ModelConfig("vgg16_cam", pretrained=str(path)), 5)


# ---- deit_small_sat ----------------------------------------------------------------------------------------------
def layer_norm(x: Array, weight: Array, bias: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6) * weight + bias


def reference(network: DeiTSmallSAT, image: Array) -> tuple[Array, Array]:
    """Logits [K] and map [h, w] of one image [3, H, W], token by token and head by head."""
    w = weights_of(network)
    blocks, heads, width = len(network.blocks), network.blocks[0].attn.num_heads, network.embed_dim
    side, masked = image.shape[1] // 16, network.masked_blocks
    patches = [
        np.tensordot(w["patch_embed.proj.weight"], image[:, 16 * i : 16 * i + 16, 16 * j : 16 * j + 16], 3)
        + w["patch_embed.proj.bias"]
        for i in range(side)
        for j in range(side)
    ]
    tokens = np.vstack([w["cls_token"][0], patches]) + w["pos_embed"][0]
    tokens = np.vstack([tokens, w["loc_token"][0] + w["loc_embed"][0]])
    maps = []
    for number in range(blocks):
        at = lambda name, number=number: w[f"blocks.{number}.{name}"]  # noqa: E731
        normed = layer_norm(tokens, at("norm1.weight"), at("norm1.bias"))
        query, key, value = np.split(normed @ at("attn.qkv.weight").T + at("attn.qkv.bias"), 3, axis=1)
        size = width // heads
        scores = np.array(
            [query[:, s] @ key[:, s].T / np.sqrt(size) for s in (slice(h * size, (h + 1) * size) for h in range(heads))]
        )
        m = 1 / (1 + np.exp(-scores[:, -1].mean(axis=0)))
        shares = np.exp(scores) / np.exp(scores).sum(axis=2, keepdims=True)
        if number >= blocks - masked:
            shares = shares * m
            maps.append(m[1:-1])
        mixed = np.hstack([shares[h] @ value[:, h * size : (h + 1) * size] for h in range(heads)])
        tokens = tokens + mixed @ at("attn.proj.weight").T + at("attn.proj.bias")
        hidden = layer_norm(tokens, at("norm2.weight"), at("norm2.bias")) @ at("mlp.fc1.weight").T + at("mlp.fc1.bias")
        tokens = tokens + hidden * norm.cdf(hidden) @ at("mlp.fc2.weight").T + at("mlp.fc2.bias")
    grid = layer_norm(tokens, w["norm.weight"], w["norm.bias"])[1:-1].T.reshape(1, width, side, side)
    logits = conv3x3(grid, w["head.weight"], w["head.bias"]).mean(axis=(2, 3))[0]
    return logits, np.mean(maps, axis=0).reshape(side, side)


def test_sat_is_the_published_formula() -> None:
    network = small_sat(img_size=48, drop_path_rate=0.0).double().eval()
    inputs = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    with torch.no_grad():
        logits, score_map = network.logits_and_score_map(inputs, torch.zeros(2, dtype=torch.long))
        torch.testing.assert_close(network(inputs), logits)
    for row in range(2):
        expected, expected_map = reference(network, inputs[row].numpy())
        assert np.ptp(expected_map) > 0.05, "a map that says nothing would test nothing"
        np.testing.assert_allclose(logits[row], expected, rtol=1e-9)
        np.testing.assert_allclose(score_map[row], expected_map, rtol=1e-9)


def test_sat_losses_are_the_published_formulas() -> None:
    network = small_sat(img_size=64, drop_path_rate=0.0).double().train()
    inputs = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    logits, losses = network(inputs)
    found = np.array([reference(network, image.numpy())[1] for image in inputs])
    edges = np.linspace(-6 - 13 / 6, 6 + 13 / 6, 4)
    masses = np.diff(norm.cdf(edges))
    kernel = np.sqrt(np.outer(masses, masses))
    kernel /= kernel.sum()
    middle, side = smoothing_weights()
    np.testing.assert_allclose(np.outer([side, middle, side], [side, middle, side]), kernel, rtol=1e-9)
    smooth = conv3x3(found[:, None], kernel[None, None])
    assert logits.shape == (3, CLASSES)
    assert set(losses) == {"loss_area", "loss_norm"}
    np.testing.assert_allclose(losses["loss_area"].item(), abs(found.mean() - 0.25), rtol=1e-9)
    np.testing.assert_allclose(losses["loss_norm"].item(), (smooth * (1 - smooth)).mean(), rtol=1e-9)


def test_sat_drop_path_rises_to_a_tenth() -> None:
    """Linearly over twelve blocks from 0, as DeiT and SAT do."""
    with torch.device("meta"):
        network = DeiTSmallSAT(3)
    rates = [getattr(block.drop_path2, "drop_prob", 0.0) for block in network.blocks]
    np.testing.assert_allclose(rates, np.linspace(0, 0.1, 12), atol=1e-7)
    assert sum(value.numel() for value in network.blocks.parameters()) == 21_293_568  # DeiT-S's twelve blocks


def test_sat_weights_of_deit(tmp_path: Path) -> None:
    """The original DeiT's file: names as timm's, within `model`."""
    donor = timm.create_model(
        "deit_small_patch16_224", img_size=32, embed_dim=24, depth=3, num_heads=3, num_classes=10
    ).state_dict()
    torch.save({"model": donor}, tmp_path / "deit.pth")
    built = build_model(ModelConfig("deit_small_sat", str(tmp_path / "deit.pth"), options=SMALL), 6)
    assert built.new_parameters == {"head.weight", "head.bias", "loc_token", "loc_embed"}
    state = built.network.state_dict()
    assert all(torch.equal(state[name], donor[name]) for name in donor if not name.startswith("head."))
    assert built.network(torch.zeros(1, 3, 32, 32))[0].shape == (1, 6)
    with pytest.raises(UserError, match=r"'pos_embed' is \[1, 5, 24\] in .*deit\.pth and \[1, 17, 24\]"):
        build_model(ModelConfig("deit_small_sat", str(tmp_path / "deit.pth"), options={**SMALL, "img_size": 64}), 6)


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("vgg16_cam", {"map_size": 7}, "map_size"),
        ("deit_small_sat", {"area": 1.5}, "area"),
        ("deit_small_sat", {"masked_blocks": 13}, "masked_blocks"),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, float], key: str) -> None:
    with pytest.raises(UserError, match=rf"model\.options\.{key}"):
        build_model(ModelConfig(name, options=options), 2)


# ---- second derivatives ------------------------------------------------------------------------------------------
def penalty_and_gradients(network: nn.Module, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """|| d f_0 / d x ||^2 and its derivatives, by autograd; zero for parameters that it does not depend on."""
    inputs = inputs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(network(inputs)[:, 0].sum(), inputs, create_graph=True)
    penalty = gradient.square().sum()
    parameters = dict(network.named_parameters())
    found = torch.autograd.grad(penalty, list(parameters.values()), allow_unused=True)
    pairs = zip(parameters.items(), found, strict=True)
    return penalty.detach(), {name: torch.zeros_like(value) if g is None else g for (name, value), g in pairs}


def test_sat_second_derivative_is_that_of_finite_differences() -> None:
    """Central differences of the penalty along one direction of all parameters, in float64."""
    network = small_sat(drop_path_rate=0.0).double().eval()
    inputs = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    along = {key: torch.randn_like(value) for key, value in network.named_parameters()}
    with sdpa_kernel(SDPBackend.MATH):
        slope = sum((g * along[name]).sum() for name, g in penalty_and_gradients(network, inputs)[1].items())
        ends, width = [], 1e-6
        for sign in (1, -1):
            with torch.no_grad():
                for key, value in network.named_parameters():
                    value.add_(sign * width * along[key])
            ends.append(penalty_and_gradients(network, inputs)[0])
            with torch.no_grad():
                for key, value in network.named_parameters():
                    value.sub_(sign * width * along[key])
    slope = torch.as_tensor(slope)
    assert slope.abs() > 1e-8
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * width), slope, rtol=1e-4, atol=0)


def test_vgg_second_derivative_by_eulers_theorem() -> None:
    """Without biases d f / d x is linear in the weights of each layer (a positive factor moves no ReLU or maximum), so
    the penalty P is homogeneous of degree two in each: sum W dP/dW = 2 P, layer by layer."""
    torch.manual_seed(0)
    network = build_model(ModelConfig("vgg16_cam"), 3).network.double().eval()
    inputs = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    weights = {name: value for name, value in network.named_parameters() if name.endswith("weight")}
    assert len(weights) == 15
    penalty, gradients = penalty_and_gradients(network, inputs)
    assert penalty > 0
    for name, value in weights.items():
        torch.testing.assert_close((value.detach() * gradients[name]).sum(), 2 * penalty, rtol=1e-8, atol=0)
