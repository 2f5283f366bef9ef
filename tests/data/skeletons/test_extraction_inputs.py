"""What skeleton extraction reads: videos, boxes, weights, arguments. No test here needs OpenMMLab."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from rendered_clips import FRAMES, NAME, draw, main, write_frames, write_video
from torch import Tensor, nn

from provscale import openmmlab
from provscale.data.skeletons.hrnet import boxes as boxes_module
from provscale.data.skeletons.hrnet.boxes import Detector, FileBoxes
from provscale.data.skeletons.hrnet.extract import Settings
from provscale.data.skeletons.hrnet.videos import Video, find_videos, read_frames
from provscale.data.skeletons.hrnet.weights import load_named_weights
from provscale.data.skeletons.tubes import UCF101_24_CLASSES
from provscale.errors import UserError

# videos


def test_frames_of_file_and_folder_are_the_same(tmp_path: Path) -> None:
    folder, file = write_frames(tmp_path / "a" / NAME), write_video(tmp_path / f"{NAME}.avi")
    drawn = np.stack([draw(number) for number in range(FRAMES)]).astype(float)
    for path in (folder, file):
        frames = np.stack(list(read_frames(path)))
        assert frames.dtype == np.uint8
        assert np.abs(frames - drawn).mean() < 1.5  # JPEG of both kinds


@pytest.mark.filterwarnings("ignore:1 videos of classes beyond")
def test_videos_are_found_and_get_their_class(tmp_path: Path) -> None:
    basketball, dunk = (
        write_frames(tmp_path / "Basketball" / NAME, 1),
        write_video(tmp_path / "BasketballDunk/x.avi", 1),
    )
    found = find_videos([tmp_path])
    assert found == [Video(basketball, f"Basketball/{NAME}", 0), Video(dunk, "x", 1)]
    assert find_videos([dunk, basketball]) == found[::-1]
    write_video(tmp_path / "v_YoYo_g01_c01.avi", 1)
    with pytest.warns(UserWarning, match="1 videos of classes beyond the 24"):
        assert find_videos([tmp_path]) == found
    clip = write_video(tmp_path / "clip.mp4.avi", 1)
    assert find_videos([clip], "Surfing")[0].label == UCF101_24_CLASSES.index("Surfing")
    for paths, action, message in (
        ([clip], None, "add --action CLASS"),
        ([clip], "Surfin", "unknown class 'Surfin', did you mean 'Surfing'"),
        ([dunk, dunk], None, "give each video once"),
        ([tmp_path / "no"], None, "does not exist"),
        ([tmp_path / "v_YoYo_g01_c01.avi"], None, "no video of the 24 classes"),
    ):
        with pytest.raises(UserError, match=message):
            find_videos(paths, action)


def test_bad_frames(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / NAME)
    (folder / "00003.jpg").rename(tmp_path / "kept.jpg")
    with pytest.raises(UserError, match="frame 3 is missing, the last is 5"):
        list(read_frames(folder))
    cv2.imwrite(str(folder / "00003.jpg"), draw(0)[:100])
    with pytest.raises(UserError, match="frame 3 is 320 x 100, those before 320 x 240"):
        list(read_frames(folder))
    (folder / "00003.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"00003\.jpg: cannot be read as an image"):
        list(read_frames(folder))
    (tmp_path / "bad.avi").write_bytes(b"no video" * 100)
    with pytest.raises(UserError, match=r"bad\.avi: no frame can be decoded"):
        list(read_frames(tmp_path / "bad.avi"))


# boxes


def test_ground_truth_boxes_keep_their_tube_and_are_scaled(tmp_path: Path) -> None:
    video = Video(tmp_path, f"Basketball/{NAME}", 0)
    # pyannot.pkl: sf from 0, ef exclusive, boxes xywh in 320 x 240.
    tubes = [
        {"label": 0, "sf": 2, "ef": 4, "boxes": np.array([[10, 20, 30, 40]] * 2, dtype=np.uint8)},
        {"label": 0, "sf": 0, "ef": 4, "boxes": np.array([[100, 120, 60, 80]] * 4, dtype=np.uint8)},
    ]
    path = tmp_path / "pyannot.pkl"
    path.write_bytes(pickle.dumps({video.name: {"annotations": tubes, "numf": 4, "label": 0}}))
    (tmp_path / "testlist01.txt").write_text(f"{video.name}\n")
    frames = [np.zeros((480, 320, 3), np.uint8)] * 2  # twice as high
    early, late = FileBoxes(path)(video, 1, frames)
    assert early.rows.tolist() == [1]
    assert late.rows.tolist() == [0, 1]
    assert late.boxes.tolist() == [[10, 40, 40, 120], [100, 240, 160, 400]]
    with pytest.raises(UserError, match="has no video 'other'"):
        FileBoxes(path)(Video(tmp_path, "other", 0), 0, frames)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", r"holds a list; expected \{video"),
        ("{", "cannot be read"),
        ('{"v": [[0, 1, 2, 3]]}', "rows are not five numbers"),
        ('{"v": [[0, 1, 2, 30, 40], [1, 9, 2, 3, 40]]}', r"row 1: \[1, 9, 2, 3, 40\] is no box"),
        ('{"v": [[-1, 1, 2, 30, 40]]}', "is no box"),
    ],
)
def test_bad_box_file(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(UserError, match=message):
        FileBoxes(tmp_path / "boxes.json")


class FakeDetector(nn.Module):
    """Reports a person, a bicycle (2) and an uncertain person; checks that images are RGB in [0, 1]."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        assert [image.amax(dim=(1, 2)).tolist() for image in images] == [[1.0, 0.0, 0.0]] * len(images)
        boxes = torch.arange(12.0).reshape(3, 4)
        return [{"boxes": boxes, "labels": torch.tensor([1, 2, 1]), "scores": torch.tensor([0.9, 0.9, 0.4])}] * len(
            images
        )


def test_detector_keeps_certain_persons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes_module.detection, "fasterrcnn_resnet50_fpn", FakeDetector)
    weights = tmp_path / "detector.pth"
    torch.save(FakeDetector().state_dict(), weights)
    red = np.zeros((4, 6, 3), np.uint8)
    red[1, 2, 2] = 255
    for least, expected in ((0.5, [[0, 1, 2, 3]]), (0.3, [[0, 1, 2, 3], [8, 9, 10, 11]])):
        found = Detector(weights, torch.device("cpu"), least)(Video(tmp_path, "x", 0), 0, [red, red])
        assert [frame.boxes.tolist() for frame in found] == [expected] * 2
        assert found[0].rows.tolist() == list(range(len(expected)))
    torch.save({"other": torch.ones(1)}, weights)
    with pytest.raises(
        UserError, match=r"holds another network .* expected fasterrcnn_resnet50_fpn_coco-258fb6c6\.pth"
    ):
        Detector(weights, torch.device("cpu"))


# command line


def test_named_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "old.pth"
    torch.save({"state_dict": {"a": torch.ones(2)}, "meta": {"anchors": np.zeros(2)}}, path)
    assert load_named_weights(path, "--weights")["a"].tolist() == [1, 1]
    assert f"--weights: {path} holds more than tensors and is unpickled in full" in capsys.readouterr().err
    torch.save({"a": torch.ones(2)}, path)
    load_named_weights(path, "--weights")
    assert capsys.readouterr().err == ""
    for content in (b"<html>", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is no readable PyTorch file"):
            load_named_weights(path, "--weights")
    torch.save({"epoch": 3}, path)
    with pytest.raises(UserError, match="holds no state dict"):
        load_named_weights(path, "--weights")


def test_without_openmmlab_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(openmmlab, "MODULES", ("mmpose_that_is_not_there", "torch"))
    assert main(["x.avi", "--out", str(tmp_path / "out.pkl"), "--weights", "w.pth"]) == 2
    error = capsys.readouterr().err
    assert "needs OpenMMLab (mmpose_that_is_not_there not installed); run bash tools/install_openmmlab.sh" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "no.pth", "--boxes", "b"], "no.pth does not exist; download td-hm_hrnet-w32_8xb64-210e_coco-25"),
        (["--weights", "{}", "--detector-weights", "d.pth"], "download fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"),
        (["--weights", "{}", "--boxes", "b.json"], "--boxes: b.json does not exist"),
        (["--weights", "{}"], "give one of --detector-weights FILE and --boxes FILE"),
        (["--weights", "{}", "--boxes", "{}", "--workers", "0"], "--workers: is 0"),
        (["--weights", "{}", "--boxes", "{}", "--batch-size", "0"], "--batch-size: is 0"),
        (["--weights", "{}", "--boxes", "{}", "--min-score", "2"], "--min-score: is 2"),
        (["--weights", "{}", "--boxes", "{}", "--device", "gpu"], "--device: unknown 'gpu'"),
        (["--weights", "{}", "--boxes", "{}", "--device", "cuda:99"], "PyTorch sees"),
        (["--weights", "{}", "--boxes", "{}"], "x.avi: does not exist"),
    ],
)
def test_bad_arguments(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(openmmlab, "MODULES", ())
    there = tmp_path / "there.pth"
    there.write_bytes(b"x")
    assert main(["x.avi", "--out", str(tmp_path / "out.pkl"), *(a.format(there) for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_settings_that_matter_are_in_the_fingerprint(tmp_path: Path) -> None:
    files = []
    for name in ("a.pth", "b.json"):
        (tmp_path / name).write_bytes(b"12345")
        files.append(tmp_path / name)
    settings = Settings(weights=files[0], boxes=files[1], flip=False, device="cuda", batch_size=7)
    assert settings.fingerprint() == {
        "weights": "a.pth, 5 bytes", "detector_weights": None, "boxes": "b.json, 5 bytes", "flip": False,
        "min_score": 0.5,
    }  # fmt: skip
