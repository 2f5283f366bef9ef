"""Score maps as files: written by evaluate.py, evaluated again without a network, and everything unusual about them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cub_folder import make_cub
from safetensors.torch import save_file

from provscale import evaluate as entry
from provscale.config import ModelConfig
from provscale.models import build_model


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A config of CUB with the localisation network, and weights of it, without training."""
    folder = tmp_path_factory.mktemp("maps")
    options = {"img_size": 32, "embed_dim": 24, "depth": 3, "num_heads": 3}
    torch.manual_seed(0)
    network = build_model(ModelConfig("deit_small_sat", options=options), 3).network
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    save_file(network.state_dict(), folder / "weights.safetensors")
    return [
        f"--data.root={make_cub(folder / 'CUB_200_2011')}", "--data.name=cub", "--data.image_size=32",
        "--model.name=deit_small_sat", f"--model.options={json.dumps(options)}", "--json", "--evaluation.batch_size=4",
    ]  # fmt: skip


@pytest.fixture
def maps(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, dict[str, float]]:
    """The network's maps of the test split, and its metrics."""
    weights = Path(words[0].split("=")[1]).parent / "weights.safetensors"
    assert entry.main([*words, "--weights", str(weights), "--save-scoremaps", str(tmp_path / "maps")]) == 0
    return tmp_path / "maps", json.loads(capsys.readouterr().out)


def again(
    words: list[str], folder: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> tuple[int, dict[str, float], str]:
    code = entry.main([*words, "--scoremaps", str(folder), *more])
    shown = capsys.readouterr()
    return code, json.loads(shown.out or "{}"), shown.err


def test_saved_maps_give_the_networks_numbers(
    words: list[str], maps: tuple[Path, dict[str, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    """To the last digit; what needs a network is left out, and named."""
    folder, expected = maps
    assert len(list(folder.rglob("*.npy"))) == 9
    first = np.load(folder / "001.Albatross" / "test_0.jpg.npy")
    assert first.shape == (2, 2)
    assert first.dtype == np.float32
    code, found, errors = again(words, folder, capsys)
    assert code == 0
    assert set(found) == {name for name in expected if name.startswith("maxboxacc") and "/top" not in name}
    assert found == {name: expected[name] for name in found}
    assert "left out, since they need a network: gradient_energy, group_accuracy" in errors
    assert 0 < found["maxboxacc"] < 100, "a figure that every map has would show nothing"


def test_maps_of_other_code(
    words: list[str], maps: tuple[Path, dict[str, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Normalised, of the input's size, in float64: the same boxes. Of another size, in integers: read all the same."""
    import cv2

    folder, expected = maps
    for path in folder.rglob("*.npy"):
        resized = cv2.resize(np.load(path).astype(np.float64), (32, 32), interpolation=cv2.INTER_CUBIC)
        np.save(path, (resized - resized.min()) / np.ptp(resized))
    _, found, _ = again(words, folder, capsys)
    assert found == pytest.approx({name: expected[name] for name in found})
    for path in folder.rglob("*.npy"):
        np.save(path, (255 * np.load(path)).astype(np.uint8)[:20, :25])
    assert again(words, folder, capsys)[0] == 0


def test_constant_nan_and_extra_maps_are_counted_and_named(
    words: list[str], maps: tuple[Path, dict[str, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = maps
    np.save(folder / "001.Albatross" / "test_0.jpg.npy", np.full((2, 2), 3.0))
    np.save(folder / "001.Albatross" / "test_1.jpg.npy", np.array([[np.nan, 1.0], [0.0, 1.0]]))
    np.save(folder / "001.Albatross" / "other.npy", np.eye(2))
    code, found, errors = again(words, folder, capsys)
    assert code == 0
    assert "1 maps belong to no image of this split: 001.Albatross/other.npy" in errors
    assert "1 maps are constant and count as zeros: 001.Albatross/test_0.jpg.npy" in errors
    assert "1 maps hold a NaN or an infinity and count as zeros: 001.Albatross/test_1.jpg.npy" in errors
    assert "maxboxacc" in found


def test_maps_that_cannot_be_used(
    words: list[str], maps: tuple[Path, dict[str, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    """One line each, and no metrics."""
    folder, _ = maps
    path = folder / "002.Auklet" / "test_0.jpg.npy"
    kept = path.read_bytes()
    for content, message in (
        (b"no array", "cannot be read as an array"),
        (np.zeros((2, 2, 3)), "of shape (2, 2, 3); must be numbers [height, width]"),
        (np.array([["a"]]), "must be numbers [height, width]"),
        (None, "has no map for 1 of 9 images: 002.Auklet/test_0.jpg.npy"),
    ):
        path.unlink(missing_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            np.save(path, content)
        code, found, errors = again(words, folder, capsys)
        assert (code, found) == (2, {})
        assert message in errors
        assert errors.count("\n") == 1
    path.write_bytes(kept)
    assert "is no folder" in again(words, folder / "nowhere", capsys)[2]
    assert "leave out --weights" in again(words, folder, capsys, "--weights", "w.safetensors")[2]
    assert "group_accuracy cannot be computed of score maps alone" in again(
        words, folder, capsys, "--evaluation.metrics=[group_accuracy]"
    )[2]  # fmt: skip
