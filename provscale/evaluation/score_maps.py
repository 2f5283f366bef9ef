"""Score maps as files: one .npy for each image, written by an evaluation and read by a later one, or by other code.

DIR/<image id>.npy, float [h, w] of any size and range; as wsolevaluation names them, e.g.
DIR/001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg.npy
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from provscale.data.splits import ItemSource, item_id
from provscale.errors import UserError
from provscale.evaluation.base import Evaluator, Gather, alone
from provscale.evaluation.maxboxacc import resize_scoremap
from provscale.files import written_aside
from provscale.sample import Sample

NAMED = 5
"""Images that a message names, of those it counts."""


def map_path(folder: Path, source: ItemSource, index: int) -> Path:
    """Where the map of one image is; below `folder` whatever the image's id."""
    parts = [part for part in PurePosixPath(item_id(source, index)).parts if part not in ("/", "..")]
    return folder.joinpath(*parts[:-1], f"{parts[-1]}.npy")


def counted(what: str, names: Sequence[str]) -> str:
    """'3 WHAT: a, b, c'; no more names than a line can hold."""
    more = ", ..." if len(names) > NAMED else ""
    return f"{len(names)} {what}: {', '.join(sorted(names)[:NAMED])}{more}"


class ScoreMapWriter(Evaluator):
    """Writes every map, float32, as the network gives it; adds no metric."""

    requires = frozenset({"score_map"})

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, source: ItemSource) -> None:
        self.source = source

    def accumulate(self, sample: Sample, outputs: dict[str, Tensor]) -> None:
        maps = outputs["score_map"].detach().cpu().float().numpy()
        for index, scoremap in zip(sample.index.tolist(), maps, strict=True):
            path = map_path(self.folder, self.source, index)
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_aside(path) as aside, aside.open("wb") as file:
                np.save(file, scoremap)

    def compute(self, gather: Gather = alone) -> dict[str, float]:
        gather(None)  # every process has written its maps when one of them goes on
        return {}


class ScoreMapFolder:
    """Maps of one split in place of a network. Maps whose sizes differ from the input's are resized (cubic) as
    MaxBoxAccV2 does.

    Args:
        folder: see the module.
        source: the split's items.

    Raises:
        UserError: no such folder, or images without a map, counted and named.
    """

    def __init__(self, folder: Path, source: ItemSource) -> None:
        if not folder.is_dir():
            raise UserError(f"--scoremaps: {folder} is no folder; provscale-evaluate --save-scoremaps writes one")
        self.folder, self.source = folder, source
        self.paths = [map_path(folder, source, index) for index in range(len(source))]
        present = {path for path in folder.rglob("*.npy") if path.is_file()}
        missing = [self.shown(path) for path in self.paths if path not in present]
        if missing:
            raise UserError(
                f"--scoremaps: {folder} has no map for {counted(f'of {len(self.paths)} images', missing)}; files are "
                "named <image id>.npy"
            )
        self.extra = [self.shown(path) for path in present - set(self.paths)]
        self.constant: list[str] = []
        self.not_finite: list[str] = []

    def shown(self, path: Path) -> str:
        return str(path.relative_to(self.folder))

    def load(self, index: int) -> NDArray[np.float64]:
        """[h, w]. Raises UserError: no array of numbers with two dimensions."""
        path = self.paths[index]
        try:
            values = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"{path}: cannot be read as an array ({reason[:120]}); replace it") from None
        if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "fiub":
            raise UserError(f"{path}: is {values.dtype} of shape {values.shape}; must be numbers [height, width]")
        if not np.isfinite(values).all():
            self.not_finite.append(self.shown(path))
        elif values.min() == values.max():
            self.constant.append(self.shown(path))
        return values.astype(np.float64)

    def predict(self, sample: Sample) -> dict[str, Tensor]:
        """`score_map` [B, H, W] float64, of the size of the sample's inputs."""
        size = int(sample.inputs.shape[-2]), int(sample.inputs.shape[-1])
        maps = [resize_scoremap(self.load(index), size) for index in sample.index.tolist()]
        return {"score_map": torch.from_numpy(np.stack(maps))}

    def remarks(self, gather: Gather = alone) -> list[str]:
        """What was unusual, over all processes: maps of no image, and maps that count as all zeros."""
        constant = [name for part in gather(self.constant) for name in part]
        not_finite = [name for part in gather(self.not_finite) for name in part]
        found = {
            "maps belong to no image of this split": self.extra,
            "maps are constant and count as zeros": constant,
            "maps hold a NaN or an infinity and count as zeros": not_finite,
        }
        return [f"--scoremaps: {counted(what, sorted(set(names)))}" for what, names in found.items() if names]
