"""Method `segmented`: `refined`, with the object that a salient-object network finds, for edits of the surroundings.

The network looks at the source, because a generator's noise and blur spoil its map of the edit (measured, as the
weight is: docs/provenance.md). The network comes from the user, as an ONNX file (extra `segment`): a graph of
arithmetic, which unlike a pickle or TorchScript runs no code.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from provscale.errors import UserError
from provscale.synthesis.provenance.base import PROVENANCE, Pixels, ProvenanceOptions, Values
from provscale.synthesis.provenance.refined import unedited_pieces

WEIGHT = 2.0  # of the network's map beside log(1 + colour distance) and 1 - SSIM
MEAN_STD = {
    "half": ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@PROVENANCE.register("segmented")
def segmented(source: Pixels, edited: Pixels, options: ProvenanceOptions) -> Pixels:
    """As `refined`, where pixels outside the salient object of the source have `WEIGHT` more in their score."""
    return unedited_pieces(source, edited, WEIGHT * (1 - saliency(source, options)))


def saliency(image: Pixels, options: ProvenanceOptions) -> Values:
    """The network's first output for an RGB image, float32 [H, W] in [0, 1], resized to the image.

    Raises:
        UserError: the network cannot be loaded or run, or its output is no map.
    """
    assert options.weights is not None
    session = open_network(options.weights)
    entry = session.get_inputs()[0]
    side = options.weights_side or (entry.shape[-1] if isinstance(entry.shape[-1], int) else None)
    if side is None:
        raise UserError(
            f"synthesis.options.weights_side: is not set, and {options.weights} does not say the size of its input; "
            "give the side in pixels the network was trained with"
        )
    mean, std = (np.array(value, np.float32) for value in MEAN_STD[options.weights_normalisation])
    pixels = cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255
    inputs = ((pixels - mean) / std).transpose(2, 0, 1)[None]
    try:
        output = session.run([session.get_outputs()[0].name], {entry.name: inputs})[0]
    except Exception as error:  # onnxruntime's errors share no base class
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"synthesis.options.weights: {options.weights} cannot be run on an image of {side} x {side} pixels "
            f"({reason[:160]}); give a network from images [1, 3, S, S] to maps [1, 1, S, S]"
        ) from None
    found: Values = np.asarray(output, dtype=np.float32).squeeze()
    if found.ndim != 2:
        raise UserError(
            f"synthesis.options.weights: {options.weights} gives an output of shape {np.shape(output)}; must be a map "
            "[1, 1, S, S]"
        )
    if found.min() < 0 or found.max() > 1:  # logits
        found = 1 / (1 + np.exp(-found))
    return np.asarray(cv2.resize(found, image.shape[1::-1], interpolation=cv2.INTER_LINEAR), dtype=np.float32)


@lru_cache(maxsize=2)
def open_network(path: str) -> Any:
    """An onnxruntime session on one CPU thread, for each loader process its own."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(
            "synthesis.options.provenance: segmented needs onnxruntime; install it with pip install "
            "'provscale[segment]'"
        ) from None
    if not Path(path).is_file():
        raise UserError(f"synthesis.options.weights: {path} does not exist; give the ONNX file of a network")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"synthesis.options.weights: {path} cannot be read as an ONNX network ({reason[:160]}); give another file"
        ) from None
