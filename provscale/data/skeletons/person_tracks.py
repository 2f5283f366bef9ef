"""Person tracks from files, in place of the extents of skeletons: those that weakly supervised methods are compared on.

    <folder>/<video>/*.pkl    one track each: {'tbound': (first, last), 'boxes': float [N, 4], 'N_frames': N, ...}

The format is that of Cheron et al.'s tracks (NeurIPS 2018, jalayrac/weakactionloc): frames count from 1, `last` is the
last one, boxes are x0, y0, x1, y1 with pixels that count from 1. `<video>` may lie in a folder of its class.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from provscale.data.skeletons.pickles import load_pickle
from provscale.errors import UserError


class PersonTracks(NamedTuple):
    """All boxes of one video's tracks, in no order.

    Attributes:
        frames: int64 [D], 0-based.
        boxes: float32 [D, 4] xyxy in pixels from 0.
    """

    frames: np.ndarray
    boxes: np.ndarray


def read_person_tracks(folder: Path, video: str) -> PersonTracks:
    """The tracks of one video.

    Raises:
        UserError: no track of this video, or a file of another form.
    """
    places = [folder / video, folder / video.rsplit("/", 1)[-1]]
    files = sorted(next((place for place in places if place.is_dir()), places[0]).glob("*.pkl"))
    if not files:
        raise UserError(
            f"data.options.tracks: {places[0]} holds no .pkl file; it needs the tracks of every video, one file each"
        )
    frames, boxes = [], []
    for path in files:
        track = load_pickle(path)
        try:
            first, last = (int(bound) for bound in track["tbound"])
            found = np.asarray(track["boxes"], dtype=np.float32)
        except (KeyError, TypeError, ValueError, IndexError):
            raise UserError(f"{path}: is no track; it must be a dict with 'tbound' (first, last) and 'boxes'") from None
        if first < 1 or found.shape != (last - first + 1, 4) or not np.isfinite(found).all():
            raise UserError(
                f"{path}: boxes have shape {found.shape} for frames {first} to {last}; they must be finite, one per "
                "frame, and frames count from 1"
            )
        frames.append(np.arange(first - 1, last))
        boxes.append(found - 1)
    return PersonTracks(np.concatenate(frames), np.concatenate(boxes))
