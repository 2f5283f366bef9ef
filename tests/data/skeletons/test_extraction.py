"""Skeletons from videos rendered here, the whole way through MMPose; skipped without OpenMMLab.

The networks' weights are random; where positions are checked, HRNet's backbone and last layers are replaced by an
image filter that peaks at coloured dots, so crop, decoding and the way back to the frame are the real ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rendered_clips import FRAMES, NAME, box, dots, main, write_boxes, write_frames, write_video
from torch import Tensor

from provscale import openmmlab
from provscale.data.skeletons.clips import read_skeletons
from provscale.data.skeletons.pickles import load_pickle

pytestmark = pytest.mark.skipif(
    bool(openmmlab.missing_modules()), reason="OpenMMLab is not installed; run tools/install_openmmlab.sh"
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from provscale.data.skeletons.hrnet.pose import PoseEstimator

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "hrnet.pth"
    torch.save({"state_dict": PoseEstimator(None, torch.device("cpu")).network.state_dict()}, path)
    return path


def plant(patch: pytest.MonkeyPatch, heatmaps: Callable[[Tensor], Tensor]) -> None:
    """Replaces HRNet by `heatmaps`, from normalised crops [n, 3, 256, 192] (RGB) to [n, 17, 64, 48]."""
    from mmpose.models.backbones import HRNet
    from mmpose.models.heads import HeatmapHead

    patch.setattr(HRNet, "forward", lambda self, crops: (crops,))
    patch.setattr(HeatmapHead, "forward", lambda self, features: heatmaps(features[-1]))


def colored_dots(crops: Tensor) -> Tensor:
    """Keypoint k is the dot of colour k mod 3: brightness of that channel at every fourth pixel, as MMPose counts."""
    smooth = F.avg_pool2d(crops - crops.amin(dim=(2, 3), keepdim=True), 5, stride=1, padding=2)[:, :, ::4, ::4]
    return (smooth / 4)[:, torch.arange(17) % 3]


def gray_dots(crops: Tensor) -> Tensor:
    """All dots for every keypoint alike, so that left and right of a mirrored crop need no telling apart."""
    return colored_dots(crops).sum(dim=1, keepdim=True).expand(-1, 17, -1, -1)


def run(tmp_path: Path, weights: Path, *videos: Path, more: tuple[str, ...] = ("--no-flip",)) -> int:
    out = ["--out", str(tmp_path / "out.pkl"), "--weights", str(weights), "--batch-size", "3", *more]
    if "--detector-weights" not in more:
        out += ["--boxes", str(tmp_path / "boxes.json")]
    return main([*map(str, videos), *out])


@pytest.mark.parametrize("kind", ["frames", "video"])
def test_dots_are_found_to_the_pixel(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    plant(monkeypatch, colored_dots)
    video = write_frames(tmp_path / NAME) if kind == "frames" else write_video(tmp_path / f"{NAME}.avi")
    write_boxes(tmp_path / "boxes.json", f"Basketball/{NAME}")
    (tmp_path / "testlist01.txt").write_text(f"Basketball/{NAME}\n")
    assert run(tmp_path, weights, video, more=("--no-flip", "--testlist", str(tmp_path / "testlist01.txt"))) == 0
    found = read_skeletons(tmp_path / "out.pkl")
    assert found.splits == {"train1": [], "test1": [f"Basketball/{NAME}"]}
    clip = found.clips[f"Basketball/{NAME}"]
    assert clip.keypoints.shape == (2, FRAMES, 17, 2)
    assert clip.label == 0
    assert (clip.scores > 0.3).all()
    expected = np.array([[dots(p, f)[np.arange(17) % 3] for f in range(FRAMES)] for p in (0, 1)])
    # The decoder knows quarters of a cell, hence an error of a quarter cell = one pixel of a crop of 192 x 256.
    crop_height = [1.25 * max(b[3] - b[1], (b[2] - b[0]) * 4 / 3) for b in (box(0, 0), box(1, 0))]
    for person in (0, 1):
        error = np.abs(clip.keypoints[person] - expected[person]).max()
        assert error < crop_height[person] / 256 + 0.15
        assert error < 1.2


def test_a_known_peak_goes_through_the_published_formula(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    column, row = 5 + np.arange(17), 10 + 2 * np.arange(17)
    heatmaps = torch.zeros(17, 64, 48)
    heatmaps[range(17), row, column] = 0.75
    heatmaps[range(17), row, column + 1] = 0.5  # a quarter cell to the right
    heatmaps[range(17), row - 1, column] = 0.25  # and up
    plant(monkeypatch, lambda crops: heatmaps.expand(len(crops), -1, -1, -1))
    write_boxes(tmp_path / "boxes.json", f"Basketball/{NAME}")
    assert run(tmp_path, weights, write_frames(tmp_path / NAME)) == 0
    clip = read_skeletons(tmp_path / "out.pkl").clips[f"Basketball/{NAME}"]
    assert clip.scores == pytest.approx(0.75)
    for person in (0, 1):
        for frame in range(FRAMES):
            x1, y1, x2, y2 = box(person, frame)
            # Xiao et al. (ECCV 2018): padding 1.25, aspect 3 : 4, four input pixels a cell.
            width = 1.25 * max(x2 - x1, (y2 - y1) * 3 / 4)
            x = (x1 + x2) / 2 + ((column + 0.25) * 4 / 192 - 0.5) * width
            y = (y1 + y2) / 2 + ((row - 0.25) * 4 / 256 - 0.5) * width * 4 / 3
            np.testing.assert_allclose(clip.keypoints[person, frame], np.stack([x, y], axis=1), atol=1e-3)


def test_mirrored_crop_agrees(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, gray_dots)
    # One dot in the box: the others would be as good.
    (x, y), name = dots(0, 0)[0], f"Basketball/{NAME}"
    (tmp_path / "boxes.json").write_text(json.dumps({name: [[0, x - 12, y - 25, x + 20, y + 25]]}))
    assert run(tmp_path, weights, write_frames(tmp_path / NAME, 1), more=()) == 0
    found = read_skeletons(tmp_path / "out.pkl").clips[name].keypoints
    np.testing.assert_allclose(found, np.broadcast_to([x, y], (1, 1, 17, 2)), atol=0.5)


def test_interrupted_extraction_goes_on(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    crops = []
    plant(monkeypatch, lambda c: (crops.append(len(c)), colored_dots(c))[1])
    first, second = write_frames(tmp_path / NAME), tmp_path / "v_Surfing_g01_c01.avi"
    second.write_bytes(b"broken")
    write_boxes(tmp_path / "boxes.json", f"Basketball/{NAME}", "Surfing/v_Surfing_g01_c01")
    assert run(tmp_path, weights, first, second) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 2 videos failed, the others are kept; first:" in error
    assert "no frame can be decoded" in error
    assert not (tmp_path / "out.pkl").exists()
    assert sum(crops) == 2 * FRAMES
    write_video(second)
    assert run(tmp_path, weights, first, second) == 0
    assert f"[2/2] Surfing/v_Surfing_g01_c01: {FRAMES} frames, 2 persons" in capsys.readouterr().out
    assert sum(crops) == 4 * FRAMES
    clips = read_skeletons(tmp_path / "out.pkl").clips
    assert list(clips) == [f"Basketball/{NAME}", "Surfing/v_Surfing_g01_c01"]
    assert run(tmp_path, weights, first, second, more=()) == 2
    assert "were extracted with flip = False, now it is True" in capsys.readouterr().err
    (tmp_path / "out.pkl.parts" / f"Basketball__{NAME}.npz").write_bytes(b"PK")
    assert run(tmp_path, weights, first, second) == 2
    assert "damaged" in capsys.readouterr().err


def test_nobody_is_kept_as_an_empty_clip(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"Basketball/{NAME}"
    (tmp_path / "boxes.json").write_text(json.dumps({name: []}))
    assert run(tmp_path, weights, write_frames(tmp_path / NAME)) == 0
    assert f"warning: nobody was found in 1 videos, kept without persons: {name}" in capsys.readouterr().err
    (annotation,) = load_pickle(tmp_path / "out.pkl")["annotations"]
    assert annotation["keypoint"].shape == (0, FRAMES, 17, 2)
    assert annotation["total_frames"] == FRAMES


def test_weights_of_another_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.pth"
    torch.save({"backbone.conv1.weight": torch.ones(64, 3, 3, 3)}, other)
    write_boxes(tmp_path / "boxes.json", f"Basketball/{NAME}")
    assert run(tmp_path, other, write_frames(tmp_path / NAME)) == 2
    assert "holds another network (Missing key(s) in state_dict" in capsys.readouterr().err


@pytest.mark.slow  # each new process imports OpenMMLab
def test_processes_and_batches_do_not_change_the_result(tmp_path: Path, weights: Path) -> None:
    videos = [write_video(tmp_path / f"v_Surfing_g01_c0{number}.avi", number) for number in (1, 2)]
    write_boxes(tmp_path / "boxes.json", *(f"Surfing/{video.stem}" for video in videos))
    results = []
    for more in (("--no-flip", "--workers", "2"), ("--no-flip",)):
        folder = tmp_path / str(len(results))
        folder.mkdir()
        (folder / "boxes.json").write_text((tmp_path / "boxes.json").read_text())
        assert run(folder, weights, *videos, more=(*more, "--batch-size", str(2 + len(results)))) == 0
        results.append(read_skeletons(folder / "out.pkl").clips)
    assert list(results[0]) == list(results[1])
    for name, clip in results[0].items():
        np.testing.assert_allclose(clip.scores, results[1][name].scores, rtol=1e-3, atol=1e-5)
        assert clip.scores.max() > 0
