"""Checkpoint folders that are complete or absent: written aside, checked, marked, renamed, then older ones pruned.

    checkpoints/step-00000120/    files of the engine, progress.json, COMPLETE (sizes and CRC-32 of all others)
    checkpoints/.saving-...       one being written; removed at the next start

Only the main process publishes, prunes and cleans; every process may write files into the temporary folder.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

from provscale.errors import UserError
from provscale.files import sync

MARKER = "COMPLETE"
PROGRESS = "progress.json"


@dataclass
class Progress:
    """Where training stands, and what a checkpoint must fit to.

    Attributes:
        step: optimizer steps done.
        best_epoch, best_step, best_value: of the deciding metric so far; epochs are 1-based, 0 = none yet.
        last_step: after which the deciding metric was last computed.
        best_metrics, last_metrics: all metrics of these two moments, on the split that selects.
        gradient_scales: what `guidance.alpha_rule` has measured so far.
        unguided_edits: in this epoch so far, edits whose mask has one value, which are trained on without guidance.
        seconds: wall time spent in training and evaluation so far.
        engine, world_size, optimizer: what wrote it.
        resumed_from: the checkpoint that `checkpoint.resume` named when this run began from it; "" otherwise.
        parameters: shape of every parameter and buffer by name.
    """

    step: int = 0
    best_epoch: int = 0
    best_step: int = 0
    best_value: float | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    last_step: int = 0
    last_metrics: dict[str, float] = field(default_factory=dict)
    gradient_scales: list[float] = field(default_factory=list)
    unguided_edits: int = 0
    seconds: float = 0.0
    engine: str = ""
    resumed_from: str = ""
    world_size: int = 1
    optimizer: str = ""
    parameters: dict[str, list[int]] = field(default_factory=dict)


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def temporary_folder(root: Path, step: int) -> Path:
    return root / f".saving-{folder_name(step)}"


def crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def publish(temporary: Path, progress: Progress) -> Path:
    """Marks a fully written temporary folder complete and gives it its name. Returns the final folder."""
    (temporary / PROGRESS).write_text(json.dumps(asdict(progress), indent=1))
    files = [path for path in sorted(temporary.rglob("*")) if path.is_file()]
    content = {}
    for path in files:
        sync(path)
        content[str(path.relative_to(temporary))] = [path.stat().st_size, crc32(path)]
    (temporary / MARKER).write_text(json.dumps(content, indent=1))
    sync(temporary / MARKER)
    sync(temporary)
    final = temporary.with_name(folder_name(progress.step))
    if final.exists():  # the same step saved again after a resume from an older checkpoint
        shutil.rmtree(final)
    os.rename(temporary, final)
    sync(final.parent)
    return final


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint folder: "" if it is complete and intact."""
    try:
        content: dict[str, list[int]] = json.loads((folder / MARKER).read_text())
        for name, (size, checksum) in content.items():
            if (folder / name).stat().st_size != size:
                return f"{name} has another size than when it was written"
            if crc32(folder / name) != checksum:
                return f"{name} has another content than when it was written"
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f"it is incomplete ({error})"
    return ""


def read_progress(folder: Path) -> Progress:
    """Raises UserError when the folder holds no progress of this program."""
    try:
        return Progress(**json.loads((folder / PROGRESS).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"checkpoint.resume: {folder} is no checkpoint of provscale ({str(error)[:120]})") from None


def newest_first(root: Path) -> list[Path]:
    """Checkpoint folders of a run, newest first; not those being written."""
    return sorted(root.glob("step-*"), reverse=True)


def clean(root: Path) -> None:
    """Removes what an interrupted save left behind."""
    for leftover in root.glob(".saving-*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def prune(root: Path, keep: int, step: int) -> None:
    """Leaves the newest `keep` checkpoints up to `step`.

    Those beyond `step` go as well: training has just passed them by, because they were damaged or because an earlier
    one was named in `checkpoint.resume`.
    """
    folders = newest_first(root)
    current = [folder for folder in folders if folder.name <= folder_name(step)]
    for old in set(folders) - set(current[:keep]):
        shutil.rmtree(old, ignore_errors=True)


def check_fits(progress: Progress, folder: Path, now: Progress) -> None:
    """Raises UserError when a checkpoint is of another model, engine or optimizer than those of `now`."""
    parameters = now.parameters
    if progress.parameters != parameters:
        other = sorted(
            name
            for name in {*progress.parameters, *parameters}
            if progress.parameters.get(name) != parameters.get(name)
        )
        first = other[0]
        raise UserError(
            f"checkpoint.resume: {folder} is of another model: {len(other)} tensors differ, e.g. '{first}' is "
            f"{progress.parameters.get(first, 'absent')} there and {parameters.get(first, 'absent')} here; set "
            "checkpoint.resume to never with another run.name, or restore model.name and the data set"
        )
    if progress.engine != now.engine:
        raise UserError(
            f"checkpoint.resume: {folder} was written by the engine '{progress.engine}', this run uses "
            f"'{now.engine}'; resume with the same launch config"
        )
    if progress.optimizer != now.optimizer:
        raise UserError(
            f"checkpoint.resume: {folder} holds the state of optim.name {progress.optimizer}, this run uses "
            f"{now.optimizer}; restore optim.name"
        )
