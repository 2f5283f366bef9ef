"""Edits as ALIA's code leaves them on disk, in the order in which its filter numbers them.

[TREE/<prompt>/]strength-S_guidance-G/<class>/<source index>-<number>.png
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from provscale.data.images.listed import read_rows
from provscale.errors import UserError

SETTINGS = re.compile(r"strength-(?P<strength>[\d.]+)_guidance-(?P<guidance>[\d.]+)")
NAME = re.compile(r"(?P<source>\d+)-(?P<number>\d+)")


@dataclass(frozen=True)
class AliaEdit:
    """One edited image.

    Attributes:
        path: its file.
        label: class, 0-based.
        source: the index of its source in ALIA's training set, as the file's name has it.
        prompt, strength, guidance: what it was made with, as the folders' names have it.
        first: whether it is the first edit of its source in its folder; ALIA uses and numbers these only.
    """

    path: Path
    label: int
    source: int
    prompt: str
    strength: str
    guidance: str
    first: bool


def plain(name: str) -> str:
    """A class name without what differs between folders and lists: 001.Black_footed -> black footed."""
    return re.sub(r"^\d+\.", "", name).replace("_", " ").replace("-", " ").lower().strip()


def read_trees(trees: Sequence[Path], class_names: Sequence[str]) -> list[AliaEdit]:
    """The edits of every tree, in ALIA's order: by tree as given, then by class folder and name as text.

    Pictures below a folder `samples`, which ALIA draws for its log, and names without an index are left out.

    Raises:
        UserError: no folder, a tree without edits, one that is given twice, or a class folder that is no class.
    """
    labels = {plain(name): label for label, name in enumerate(class_names)}
    edits: list[AliaEdit] = []
    read = set[Path]()
    for tree in trees:
        if not tree.is_dir():
            raise UserError(f"{tree}: is no folder; give ALIA's folder of edits, or one strength-S_guidance-G in it")
        folders = [path for path in sorted(tree.rglob("strength-*_guidance-*")) if path.is_dir()]
        folders = [tree] if SETTINGS.fullmatch(tree.resolve().name) else folders
        before = len(edits)
        for folder in folders:
            if folder.resolve() in read:
                raise UserError(f"{folder}: is given twice, which would list every edit twice; give each tree once")
            read.add(folder.resolve())
            edits += read_folder(folder, labels, class_names)
        if len(edits) == before:
            raise UserError(f"{tree}: holds no strength-S_guidance-G/<class>/<index>-<number>.png; give ALIA's edits")
    return edits


def read_folder(folder: Path, labels: dict[str, int], class_names: Sequence[str]) -> list[AliaEdit]:
    settings = SETTINGS.fullmatch(folder.resolve().name)
    if settings is None:
        raise UserError(f"{folder}: its name must be strength-S_guidance-G with two numbers")
    prompt = folder.resolve().parent.name.replace("_", " ")
    edits, seen = [], set[int]()
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        for path in sorted(class_folder.glob("*.png")):
            name = NAME.fullmatch(path.stem)
            if name is None:
                continue
            if plain(class_folder.name) not in labels:
                raise UserError(f"{class_folder}: is no class; must be one of {', '.join(class_names)}")
            source = int(name["source"])
            edits.append(
                AliaEdit(
                    path, labels[plain(class_folder.name)], source, prompt, settings["strength"],
                    settings["guidance"], source not in seen,
                )
            )  # fmt: skip
            seen.add(source)
    return edits


def kept_by_index(edits: Sequence[AliaEdit], file: Path) -> list[AliaEdit]:
    """The edits that ALIA's `filtered_idxs/kept.npy` names: positions among the first edits of each source.

    Raises:
        UserError: the file cannot be read, or names an edit that is not there (other trees, or another order of them).
    """
    try:
        kept = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file}: cannot be read as a NumPy array ({error}); give ALIA's kept.npy") from None
    numbered = [edit for edit in edits if edit.first]
    if kept.ndim != 1 or kept.dtype.kind not in "iu":
        raise UserError(f"{file}: holds {kept.dtype} of shape {kept.shape}, must be a list of integers")
    if kept.size and (kept.min() < 0 or kept.max() >= len(numbered)):
        raise UserError(
            f"{file}: names edit {kept.max()}, but the trees hold {len(numbered)}; give the same trees, in the order "
            "of ALIA's extra_root"
        )
    return [numbered[position] for position in sorted(set(kept.tolist()))]


def kept_by_scores(edits: Sequence[AliaEdit], file: Path) -> tuple[list[AliaEdit], dict[str, int]]:
    """The edits that ALIA's rules keep, and how many go by each rule. An edit goes

    - as off topic, when CLIP finds a negative prompt closer than the wanted one (`semantic` 0);
    - when a classifier trained on real images is surer of its class than on average in training (`confidence` above
      `threshold`, cleanlab's confident threshold of the predicted class): as too easy where that is the edit's class,
      as mislabelled where it is another.

    Args:
        file: CSV with file_name (relative to it), semantic, prediction (0-based), confidence and threshold.

    Raises:
        UserError: the file cannot be read, a cell is no number, or an edit has no row.
    """
    verdicts: dict[Path, tuple[bool, int, bool]] = {}
    for where, row in read_rows(file, ("file_name", "semantic", "prediction", "confidence", "threshold")):
        try:
            sure = float(row["confidence"]) > float(row["threshold"])
            verdict = bool(int(row["semantic"])), int(row["prediction"]), sure
        except ValueError as error:
            raise UserError(f"{where}: {error}; semantic is 0 or 1, prediction a class, the others numbers") from None
        verdicts[(file.parent / row["file_name"]).resolve()] = verdict
    kept, gone = [], {"off topic": 0, "too easy": 0, "mislabelled": 0}
    for edit in edits:
        if edit.path.resolve() not in verdicts:
            raise UserError(f"{file}: has no row for {edit.path}; score every edit, or leave --scores out")
        semantic, prediction, sure = verdicts[edit.path.resolve()]
        if not semantic:
            gone["off topic"] += 1
        elif sure:
            gone["too easy" if prediction == edit.label else "mislabelled"] += 1
        else:
            kept.append(edit)
    return kept, gone
