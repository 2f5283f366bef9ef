"""Clips with known dots, and the extraction tool, for the tests of skeleton extraction."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
from paths import ROOT

WIDTH, HEIGHT, FRAMES = 320, 240, 5
NAME = "v_Basketball_g01_c01"


def load_tool() -> ModuleType:
    path = ROOT / "tools" / "extract_skeletons.py"
    spec = importlib.util.spec_from_file_location("extract_skeletons", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


main: Callable[[list[str]], int] = load_tool().main


def dots(person: int, frame: int) -> np.ndarray:
    """Float [3, 2]: where person 0 (left) or 1 (right) has its red, green and blue dot."""
    start = np.array([[60.3, 70.8], [90.0, 121.5], [75.6, 180.2]])
    return start + np.array([150.4 * person + 3.7 * frame, 5 * person - 2.3 * frame])


def box(person: int, frame: int) -> list[float]:
    """Boxes of two sizes; the right one leaves the picture."""
    x, y = dots(person, frame)[0]
    return [x - 22, y - 40, x + 55 + 40 * person, y + 135 + 50 * person]


def draw(frame: int) -> np.ndarray:
    """uint8 [H, W, 3] BGR with Gaussian dots of 3 pixels."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = np.zeros((HEIGHT, WIDTH, 3))
    for person in (0, 1):
        for color, (px, py) in enumerate(dots(person, frame)):
            image[..., 2 - color] += 250 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 18)
    return image.clip(0, 255).astype(np.uint8)


def write_frames(folder: Path, frames: int = FRAMES) -> Path:
    folder.mkdir(parents=True)
    for number in range(frames):
        cv2.imwrite(str(folder / f"{number + 1:05d}.jpg"), draw(number), [cv2.IMWRITE_JPEG_QUALITY, 95])
    return folder


def write_video(path: Path, frames: int = FRAMES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (WIDTH, HEIGHT))
    for number in range(frames):
        writer.write(draw(number))
    writer.release()
    return path


def write_boxes(path: Path, *videos: str) -> Path:
    rows = [[frame, *box(person, frame)] for frame in range(FRAMES) for person in (0, 1)]
    path.write_text(json.dumps(dict.fromkeys(videos, rows)))
    return path
