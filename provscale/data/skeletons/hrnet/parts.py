"""Results of single videos beside the final file, so that an interrupted extraction goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from provscale.data.skeletons.clips import SkeletonClip
from provscale.data.skeletons.hrnet.videos import Video
from provscale.errors import UserError
from provscale.files import write_atomically, written_aside


class Parts:
    """A folder with one `.npz` a video, each complete or absent, and `settings.json`."""

    def __init__(self, folder: Path, fingerprint: dict[str, Any]) -> None:
        """Opens or creates the folder.

        Args:
            folder: usually `FILE.pkl.parts`.
            fingerprint: what determines the results; JSON types.

        Raises:
            UserError: the folder cannot be written, or its parts were made with another fingerprint.
        """
        self.folder = folder
        path = folder / "settings.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                write_atomically(path, json.dumps(fingerprint, indent=1))
            before = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: cannot be used ({error}); choose a writable folder for --out") from None
        for key, value in fingerprint.items():
            if before.get(key) != value:
                raise UserError(
                    f"{folder}: its videos were extracted with {key} = {before.get(key)}, now it is {value}; "
                    "give the same, another --out, or remove the folder"
                )

    def path(self, video: Video) -> Path:
        return self.folder / f"{video.name.replace('/', '__')}.npz"

    def done(self, video: Video) -> bool:
        return self.path(video).is_file()

    def save(self, clip: SkeletonClip, video: Video) -> None:
        """Writes the clip. Raises UserError when that fails, e.g. on a full disk; nothing is left then."""
        target = self.path(video)
        try:
            with written_aside(target) as aside, aside.open("wb") as file:
                np.savez_compressed(file, keypoints=clip.keypoints, scores=clip.scores, shape=np.array(clip.shape))
        except OSError as error:
            raise UserError(f"{target}: cannot be written ({error.strerror}); make room and start again") from None

    def load(self, video: Video) -> SkeletonClip:
        """Reads a clip. Raises UserError when its file is damaged."""
        path = self.path(video)
        try:
            with np.load(path, allow_pickle=False) as data:
                shape = (int(data["shape"][0]), int(data["shape"][1]))
                return SkeletonClip(video.name, video.label, data["keypoints"], data["scores"], shape)
        except Exception as error:  # a damaged archive raises almost anything
            raise UserError(f"{path}: damaged ({error}); remove it and start again") from None
