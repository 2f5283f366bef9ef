"""Person tracks from files replace the extents of skeletons in evaluation; each box takes its skeleton's scores."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from provscale.data.skeletons.person_tracks import read_person_tracks
from provscale.data.skeletons.tracks import FrameDetections
from provscale.errors import UserError
from provscale.evaluation.video_ap_evaluator import on_tracks


def write_track(folder: Path, name: str, first: int, boxes: np.ndarray, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    track = {"tbound": (first, first + len(boxes) - 1), "boxes": boxes, "N_frames": len(boxes), **changes}
    path = folder / f"{name}.pkl"
    path.write_bytes(pickle.dumps(track, protocol=2))
    return path


def test_tracks_count_from_one_and_are_read_from_zero(tmp_path: Path) -> None:
    write_track(tmp_path / "v_Biking_g01_c01", "track00001", 1, np.array([[1.0, 1, 11, 21], [2, 1, 12, 21]]))
    write_track(tmp_path / "v_Biking_g01_c01", "track00002", 2, np.array([[51.0, 1, 61, 21]]))
    for video in ("v_Biking_g01_c01", "Biking/v_Biking_g01_c01"):
        found = read_person_tracks(tmp_path, video)
        assert found.frames.tolist() == [0, 1, 1]
        assert found.boxes.tolist() == [[0, 0, 10, 20], [1, 0, 11, 20], [50, 0, 60, 20]]
        assert found.boxes.dtype == np.float32


def test_a_box_takes_the_scores_of_the_skeleton_inside_it(tmp_path: Path) -> None:
    """Two skeletons in frame 0, one in frame 1; the second track's box in frame 1 has no skeleton in it."""
    folder = tmp_path / "video"
    write_track(folder, "a", 1, np.array([[1.0, 1, 21, 41], [3, 1, 23, 41]]))
    write_track(folder, "b", 1, np.array([[101.0, 1, 121, 41], [101, 1, 121, 41], [101, 1, 121, 41]]))
    skeletons = FrameDetections(
        "video",
        np.array([0, 0, 1]),
        np.array([[104, 4, 116, 30], [4, 4, 16, 30], [6, 4, 18, 30]], dtype=np.float32),
        np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], dtype=np.float32),
    )
    found = on_tracks(skeletons, read_person_tracks(tmp_path, "video"))
    rows = {(int(f), float(b[0])): s.tolist() for f, b, s in zip(found.frames, found.boxes, found.scores, strict=True)}
    expected = {(0, 0.0): [0.2, 0.8], (0, 100.0): [0.9, 0.1], (1, 2.0): [0.3, 0.7]}
    assert rows.keys() == expected.keys()
    for key, scores in expected.items():
        assert rows[key] == pytest.approx(scores)
    nobody = FrameDetections("video", np.zeros(0, dtype=int), np.zeros((0, 4)), np.zeros((0, 2)))
    assert len(on_tracks(nobody, read_person_tracks(tmp_path, "video")).frames) == 0


def test_files_of_another_form_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.options\.tracks: .*nowhere holds no \.pkl file"):
        read_person_tracks(tmp_path, "nowhere")
    path = write_track(tmp_path / "short", "a", 1, np.ones((2, 4)), tbound=(1, 5))
    with pytest.raises(UserError, match=rf"{path}: boxes have shape \(2, 4\) for frames 1 to 5"):
        read_person_tracks(tmp_path, "short")
    path = write_track(tmp_path / "odd", "a", 1, np.ones((2, 4)), tbound=None)
    with pytest.raises(UserError, match=f"{path}: is no track"):
        read_person_tracks(tmp_path, "odd")


def test_a_pickle_that_runs_code_is_not_opened(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self):
            return print, ("harm",)

    (tmp_path / "video").mkdir()
    (tmp_path / "video" / "a.pkl").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(UserError, match="print"):
        read_person_tracks(tmp_path, "video")
