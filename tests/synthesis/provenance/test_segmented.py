"""Method segmented with tiny networks made here, whose maps are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_refined import exchanged_background, overlap

from provscale.errors import UserError
from provscale.synthesis.provenance import ProvenanceOptions, make_mask
from provscale.synthesis.provenance.base import Pixels
from provscale.synthesis.provenance.segmented import saliency

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def red_network(path: Path, side: int | str = 32, logits: bool = False, channels: int = 1) -> str:
    """A network whose map is the red channel (from half's normalisation, so + 0.5), or 9 times its distance to 0.5."""
    from onnx import TensorProto, helper, numpy_helper

    weight = np.zeros((channels, 3, 1, 1), np.float32)
    weight[:, 0] = 9.0 if logits else 1.0
    bias = np.full(channels, 0.0 if logits else 0.5, np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weight", "bias"], ["map"])],
        "red",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, [1, channels, side, side])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return str(path)


def options(weights: str, **further: object) -> ProvenanceOptions:
    return ProvenanceOptions(provenance="segmented", weights=weights, **further)  # type: ignore[arg-type]


def red_image(height: int = 32, width: int = 32) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_map_is_the_networks_output(tmp_path: Path) -> None:
    image = red_image()
    found = saliency(image, options(red_network(tmp_path / "red.onnx")))
    np.testing.assert_allclose(found, image[..., 0] / 255, atol=1e-6)


def test_logits_become_shares(tmp_path: Path) -> None:
    image = red_image()
    found = saliency(image, options(red_network(tmp_path / "red.onnx", logits=True)))
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-9 * (image[..., 0] / 255 - 0.5))), atol=1e-6)


def test_the_map_has_the_size_of_the_image(tmp_path: Path) -> None:
    network = red_network(tmp_path / "red.onnx", side="S")
    assert saliency(red_image(40, 60), options(network, weights_side=16)).shape == (40, 60)
    with pytest.raises(UserError, match=r"weights_side: is not set"):
        saliency(red_image(), options(network))


def test_the_network_decides_where_the_difference_says_nothing(tmp_path: Path) -> None:
    """A generator left noise of one kind everywhere; only the network, which sees red, knows the object."""
    source, _, truth = exchanged_background(64)
    truth = np.roll(truth, (-1, -1), (0, 1))  # where it is in the source
    source = np.stack([truth * 100 + 100, source[..., 1], source[..., 2]], axis=2).astype(np.uint8)
    noise = np.random.default_rng(1).normal(0, 12, source.shape)
    edited = (source + noise).clip(0, 255).astype(np.uint8)
    images = [torch.from_numpy(image).permute(2, 0, 1) for image in (source, edited)]
    network = red_network(tmp_path / "red.onnx", logits=True)
    found = make_mask(*images, options(network))[0].numpy()
    plain = make_mask(*images, ProvenanceOptions(provenance="refined"))[0].numpy()
    assert overlap(found, truth) > 0.85
    assert overlap(plain, truth) < 0.6


def test_networks_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"weights: .*none\.onnx does not exist"):
        saliency(red_image(), options(str(tmp_path / "none.onnx")))
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(UserError, match=r"text\.onnx cannot be read as an ONNX network"):
        saliency(red_image(), options(str(tmp_path / "text.onnx")))
    with pytest.raises(UserError, match=r"cannot be run on an image of 8 x 8"):
        saliency(red_image(), options(red_network(tmp_path / "red.onnx"), weights_side=8))
    with pytest.raises(UserError, match=r"output of shape \(1, 2, 32, 32\)"):
        saliency(red_image(), options(red_network(tmp_path / "two.onnx", channels=2)))
