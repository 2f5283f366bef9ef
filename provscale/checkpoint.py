"""When and what to save, and where to resume from. How a folder becomes complete: `checkpoint_folder`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from provscale.checkpoint_folder import (
    Progress,
    check_fits,
    clean,
    damage,
    newest_first,
    prune,
    publish,
    read_progress,
    sync,
    temporary_folder,
)
from provscale.config import Config
from provscale.engine import Engine
from provscale.errors import UserError


class Checkpointer:
    """Saves and restores a run; every method is called by all processes.

    Attributes:
        root: <run>/checkpoints.
        last: newest complete checkpoint this run wrote or resumed from.
    """

    def __init__(self, engine: Engine, config: Config) -> None:
        self.engine, self.config = engine, config
        self.root = config.folder / "checkpoints"
        self.last: Path | None = None

    def resume(self) -> Progress:
        """Restores the checkpoint that `checkpoint.resume` names, or starts anew.

        Raises:
            UserError: a named checkpoint is damaged or does not fit; `never` and the run folder has checkpoints.
        """
        chosen = self.engine.on_main(self.choose)
        if chosen is None:
            return self.stamp(Progress())
        folder = Path(chosen)
        progress = read_progress(folder)
        check_fits(progress, folder, self.engine.shapes(), self.engine.name)
        self.engine.check_world_size(progress.world_size, folder)
        self.engine.load(folder)
        self.last = folder
        self.engine.print(f"resumed from {folder}, step {progress.step}")
        return self.stamp(progress)

    def stamp(self, progress: Progress) -> Progress:
        return replace(
            progress,
            engine=self.engine.name,
            world_size=self.engine.world_size,
            parameters=self.engine.shapes(),
        )

    def choose(self) -> str | None:
        """The checkpoint folder to resume from, or None. Runs on the main process."""
        wanted = self.config.checkpoint.resume
        if wanted not in ("auto", "never"):
            folder = Path(wanted)
            if not folder.is_dir():
                raise UserError(f"checkpoint.resume: {folder} is no folder; allowed are auto, never or a checkpoint")
            if problem := damage(folder):
                raise UserError(f"checkpoint.resume: {folder} cannot be used: {problem}; name another checkpoint")
            return str(folder)
        self.root.mkdir(parents=True, exist_ok=True)
        clean(self.root)
        folders = newest_first(self.root)
        if wanted == "never":
            if folders:
                raise UserError(
                    f"checkpoint.resume: is never, but {self.root} holds {len(folders)} checkpoints; choose another "
                    "run.name, or remove that folder"
                )
            return None
        for folder in folders:
            problem = damage(folder)
            if not problem:
                return str(folder)
            self.engine.print(f"warning: checkpoint {folder} is skipped: {problem}")
        return None

    def save(self, progress: Progress) -> None:
        """Writes a checkpoint, then removes those beyond `checkpoint.keep`.

        Raises:
            UserError: it cannot be written (full disk); nothing half-written stays, earlier ones are intact.
        """
        temporary = temporary_folder(self.root, progress.step)

        def create() -> None:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)

        self.guarded(lambda: self.engine.on_main(create), temporary)
        self.guarded(lambda: self.engine.save(temporary), temporary)
        published = self.guarded(lambda: self.engine.on_main(lambda: str(publish(temporary, progress))), temporary)
        self.last = Path(published)
        self.engine.on_main(lambda: prune(self.root, self.config.checkpoint.keep))

    def save_weights(self, name: str) -> None:
        """Writes the network's weights alone, as plain PyTorch and timm load them, to checkpoints/<name>."""
        state = self.engine.network_state()
        path = self.root / name
        aside = self.root / f".saving-{name}"

        def write() -> None:
            save_file(state, aside)
            sync(aside)
            os.replace(aside, path)

        self.guarded(lambda: self.engine.on_main(write), aside)

    def guarded(self, action: Callable[[], Any], temporary: Path) -> Any:
        """Runs `action`; if any process cannot write, removes `temporary` and raises UserError on all of them."""
        result, problem = None, ""
        try:
            result = action()
        except (OSError, SafetensorError, RuntimeError, UserError) as error:
            # torch.save and safetensors report a full disk as RuntimeError and SafetensorError.
            problem = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        problems = [text for text in self.engine.gather(problem) if text]
        if problems:
            if self.engine.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.unlink(missing_ok=True)
            raise UserError(
                f"checkpoint: {temporary.parent} cannot be written ({problems[0]}); free space and start again with "
                f"checkpoint.resume auto; newest checkpoint: {self.last or 'none'}"
            )
        return result
