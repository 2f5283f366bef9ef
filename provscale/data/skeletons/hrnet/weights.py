"""Weight files that the user names: OpenMMLab's and torchvision's checkpoints."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from provscale.errors import UserError

HRNET_FILE = "td-hm_hrnet-w32_8xb64-210e_coco-256x192-81c58e40_20220909.pth"
DETECTOR_FILE = "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"


def require_file(path: Path, option: str, file_to_get: str, origin: str) -> None:
    """Raises UserError when `path` is no file; the message says which file to download."""
    if not path.is_file():
        raise UserError(f"{option}: {path} does not exist; download {file_to_get} from {origin} and give its path")


def load_named_weights(path: Path, option: str) -> dict[str, Tensor]:
    """The state dict in a checkpoint that the user named with `option`.

    Checkpoints of OpenMMLab also hold settings as Python objects, which PyTorch's safe reader refuses. Such a file is
    then unpickled in full, which can run code of its authors: only for this file, and a line on standard error says so.

    Raises:
        UserError: no PyTorch file, or one without tensors.
    """
    content: Any
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            print(
                f"{option}: {path} holds more than tensors and is unpickled in full, which can run code; "
                "use only files whose origin you trust",
                file=sys.stderr,
            )
            content = torch.load(path, map_location="cpu", weights_only=False)
    # A damaged or foreign file raises almost any exception.
    except Exception as error:
        detail = " ".join(str(error).split())[:100]
        raise UserError(f"{option}: {path} is no readable PyTorch file ({detail}); download it again") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not (isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values())):
        raise UserError(f"{option}: {path} holds no state dict (a mapping of names to tensors)")
    return content


def load_into(network: nn.Module, weights: dict[str, Tensor], path: Path, option: str, file_expected: str) -> None:
    """Loads all of `weights`; a tensor missing, left over or of another shape is a UserError, never left random."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        detail = (lines[1] if len(lines) > 1 else lines[0])[:140]
        raise UserError(f"{option}: {path} holds another network ({detail}); expected {file_expected}") from None
