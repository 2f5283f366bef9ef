"""UCF101-24 files: pickles read as data only, and both ground-truth formats. Fixtures are written here."""

from __future__ import annotations

import os
import pickle
import pickletools
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from provscale.data.skeletons.pickles import load_pickle
from provscale.data.skeletons.tubes import UCF101_24_CLASSES, GroundTruth, read_pyannot, read_testlist, read_ucf101v2
from provscale.errors import UserError

DUNK, DIVING = "BasketballDunk/v_BasketballDunk_g01_c01", "Diving/v_Diving_g02_c03"


def dump(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


class Evil:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


# pickles


@pytest.mark.parametrize("protocol", range(6))
def test_pickle_data_comes_back(tmp_path: Path, protocol: int) -> None:
    content = {
        "array": np.arange(6, dtype=np.uint16).reshape(2, 3).T,
        "objects": np.array([1, "a", None], dtype=object),
        "records": np.array([(1, 2.5)], dtype=[("x", "i4"), ("y", "f8")]),
        "scalars": (np.uint8(200), np.float32(0.5), np.str_("v"), np.dtype("<f4"), 1.5, 2**70, 1 + 2j),
        "containers": [{1, 2}, frozenset({3}), OrderedDict(a=1), defaultdict(list, b=[2]), b"\xff\x00", None, True],
    }
    back = load_pickle(dump(tmp_path / "a.pkl", content, protocol))
    for key in ("array", "objects", "records"):
        np.testing.assert_array_equal(back[key], content[key])
        assert back[key].dtype == content[key].dtype
    assert back["scalars"] == content["scalars"]
    assert back["containers"] == content["containers"]


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_pickle_of_python_2_and_of_both_numpy_generations(tmp_path: Path, core: str) -> None:
    # Opcodes as Python 2 wrote {'caf\xe9': array([200, 5], dtype=uint8)}: byte strings (U) instead of unicode.
    array = (
        b"c" + core.encode() + b".multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x02\xc8\x05tb"
    )
    (tmp_path / "py2.pkl").write_bytes(b"\x80\x02}U\x04caf\xe9" + array + b"s.")
    back = load_pickle(tmp_path / "py2.pkl")
    assert list(back) == ["café"]
    np.testing.assert_array_equal(back["café"], np.array([200, 5], dtype=np.uint8), strict=True)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_pickle_is_refused_and_named_and_not_run(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "marker"
    path = dump(tmp_path / "evil.pkl", {"boxes": Evil(os.system, f"touch {marker}")}, protocol)
    pickle.loads(path.read_bytes())
    assert marker.exists(), "control: unrestricted reading runs the command"
    marker.unlink()
    with pytest.raises(UserError, match=r"evil.pkl: refused, .*'os\.system'") as caught:
        load_pickle(path)
    assert not marker.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "name"),
    [("builtins", "eval"), ("builtins", "getattr"), ("__builtin__", "exec"), ("numpy", "load"), ("numpy", "object_"),
     ("functools", "partial"), ("numpy", "ndarray.tofile"), ("collections", "namedtuple"), ("no.such", "thing")],
)  # fmt: skip
def test_no_other_name_is_let_through(tmp_path: Path, module: str, name: str) -> None:
    text = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name))
    payload = b"\x80\x04" + text + b"\x93."
    pickletools.dis(payload, out=open(os.devnull, "w"))  # noqa: SIM115 (the payload is a valid pickle)
    (tmp_path / "evil.pkl").write_bytes(payload)
    with pytest.raises(UserError, match=f"refused.*{module.replace('__builtin__', 'builtins')}.{name}'"):
        load_pickle(tmp_path / "evil.pkl")


@pytest.mark.parametrize("content", [b"", b"<html>", pickle.dumps([1, 2])[:-3], b"\x80\x04K\x01K\x02\x93."])
def test_damaged_pickle_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"a.pkl: not a readable pickle") as caught:
        load_pickle(tmp_path / "a.pkl")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        load_pickle(tmp_path / "missing.pkl")


# ground truth

XYWH = np.array([[200, 100, 100, 60], [210, 100, 100, 60], [220, 100, 100, 60]])
"""200 + 100 does not fit uint8."""


def pyannot() -> dict[Any, Any]:
    tube = {"label": 1, "sf": 2, "ef": 5, "boxes": XYWH.astype(np.uint8)}
    wide = {"label": 5, "sf": 0, "ef": 1, "boxes": np.array([[1, 1, 300, 200]], dtype=np.uint16)}
    return {
        np.str_(DUNK): {"annotations": [tube], "numf": np.uint8(5), "label": 1},
        DIVING: {"annotations": [wide], "numf": np.uint16(300), "label": 5},
    }


def ucf101v2() -> dict[str, Any]:
    dunk = np.array([[3, 200, 100, 300, 160], [4, 210, 100, 310, 160], [5, 220, 100, 320, 160]], dtype=np.float32)
    diving = np.array([[1, 1, 1, 301, 201]], dtype=np.float32)
    return {
        "labels": list(UCF101_24_CLASSES), "train_videos": [[DUNK]], "test_videos": [[DIVING]],
        "nframes": {DUNK: 5, DIVING: 300}, "resolution": {DUNK: (240, 320), DIVING: (240, 320)},
        "gttubes": {DUNK: {1: [dunk]}, DIVING: {5: [diving]}},
    }  # fmt: skip


def check_truth(truth: GroundTruth) -> None:
    """The numbers of both fixtures, worked out by hand: x2 = x + w, frame 3 (1-based) = 2 (0-based)."""
    assert truth.frame_counts == {DUNK: 5, DIVING: 300}
    assert truth.resolutions == {DUNK: (240, 320), DIVING: (240, 320)}
    assert (truth.train_videos, truth.test_videos) == ([DUNK], [DIVING])
    (tube,) = truth.tubes[DUNK]
    assert (tube.video, tube.label, tube.first_frame, tube.end_frame, len(tube)) == (DUNK, 1, 2, 5, 3)
    expected = np.array([[200, 100, 300, 160], [210, 100, 310, 160], [220, 100, 320, 160]], dtype=np.float32)
    np.testing.assert_array_equal(tube.boxes, expected, strict=True)
    assert truth.tubes[DIVING][0].boxes.tolist() == [[1, 1, 301, 201]]


def test_both_ground_truth_files_give_the_same(tmp_path: Path) -> None:
    (tmp_path / "testlist01.txt").write_text(f"{DIVING}.avi 6\n\n")
    check_truth(read_pyannot(dump(tmp_path / "pyannot.pkl", pyannot(), 3)))
    check_truth(read_ucf101v2(dump(tmp_path / "v2.pkl", ucf101v2(), 2)))
    single = ucf101v2()
    single["gttubes"][DUNK][1] = single["gttubes"][DUNK][1][0]
    single["test_videos"] = [DIVING]
    check_truth(read_ucf101v2(dump(tmp_path / "v2.pkl", single)))


def test_labels_of_ucf101v2_are_taken_by_name(tmp_path: Path) -> None:
    content = ucf101v2()
    content["labels"] = content["labels"][::-1]
    content["gttubes"] = {DUNK: {22: content["gttubes"][DUNK][1]}, DIVING: {18: content["gttubes"][DIVING][5]}}
    check_truth(read_ucf101v2(dump(tmp_path / "v2.pkl", content)))


def change(content: Any, keys: tuple[Any, ...], value: Any) -> Any:
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return content


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("Divin/v_Divin_g01_c01",), {}, "unknown class 'Divin', did you mean 'Diving'"),
        ((DUNK, "annotations", 0, "label"), 5, "label 5, its class is number 1"),
        ((DUNK, "annotations", 0, "ef"), 6, r"frames 2 to 6 \(exclusive\) but 3 boxes"),
        ((DUNK, "numf"), 4, "tube over frames 2 to 4, the video has 0 to 3"),
        ((DUNK, "numf"), "four", "'numf' is 'four'"),
        ((DUNK, "annotations"), 7, "'annotations' is a int"),
        ((DUNK, "annotations", 0), {}, "no 'label'"),
        ((DUNK, "annotations", 0, "boxes"), XYWH[:, :3], r"boxes are int64 \[3, 3\]"),
        ((DUNK, "annotations", 0, "boxes"), XYWH - 400, "no x1, y1, x2, y2 in a frame of 320 x 240"),
        ((DUNK, "annotations", 0, "boxes"), XYWH * np.nan, "at frame 2"),
    ],
)
def test_bad_pyannot(tmp_path: Path, keys: tuple[Any, ...], value: Any, message: str) -> None:
    (tmp_path / "testlist01.txt").write_text(f"{DIVING}\n")
    path = dump(tmp_path / "pyannot.pkl", change(pyannot(), keys, value))
    with pytest.raises(UserError, match=message) as caught:
        read_pyannot(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("labels", 3), "Cooking", "unknown class 'Cooking'"),
        (("gttubes", DUNK), {24: []}, "label 24; allowed is 0 to 23"),
        (("nframes", DUNK), 4, "tube over frames 2 to 4, the video has 0 to 3"),
        (("gttubes", DUNK, 1, 0), np.array([[0, 1, 1, 9, 9.0]]), "frames -1 to -1"),
        (("gttubes", DUNK, 1, 0), np.array([[1, 1, 1, 9, 9], [3, 1, 1, 9, 9]]), "not consecutive"),
        (("gttubes", DUNK, 1, 0), np.zeros((0, 5)), "without boxes"),
        (("resolution", DUNK), 240, "expected .height, width."),
        (("test_videos",), [], "split 1 of test_videos; allowed is 1 to 0"),
        (("test_videos",), [["x"]], "video 'x' has no annotation"),
        (("gttubes",), [], "'gttubes' is a list"),
    ],
)
def test_bad_ucf101v2(tmp_path: Path, keys: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_ucf101v2(dump(tmp_path / "v2.pkl", change(ucf101v2(), keys, value)))


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no video"), ("Diving\n", "no video name"), ("YoYo/v_YoYo_g01_c01\n", "line 1: unknown class 'YoYo'"),
     (f"{DUNK}\n{DUNK}\n", "line 2: .* twice")],
)  # fmt: skip
def test_bad_testlist(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_testlist(tmp_path / "list.txt")
    with pytest.raises(UserError, match="cannot be read"):
        read_testlist(tmp_path / "missing.txt")
