"""When and what to save, and where to resume from. How a folder becomes complete: `checkpoint_folder`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from provscale.config import Config
from provscale.engine import Engine
from provscale.errors import UserError
from provscale.files import sync
from provscale.run.checkpoint_folder import (
    Progress,
    check_fits,
    clean,
    damage,
    newest_first,
    prune,
    publish,
    read_progress,
    temporary_folder,
)

BEST, FINAL = "best.safetensors", "final.safetensors"
"""Weights of the best and of the last epoch, in <run>/checkpoints."""


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
        now = self.stamp(Progress())
        if chosen is None:
            return now
        folder = Path(chosen)
        progress = read_progress(folder)
        check_fits(progress, folder, now)
        self.engine.check_world_size(progress.world_size, folder)
        self.load(folder)
        self.last = folder
        if folder.resolve().parent != self.root.resolve():  # another run's best weights are not in this run's folder
            progress = replace(progress, best_epoch=0, best_step=0, best_value=None, best_metrics={}, last_step=0,
                               last_metrics={})  # fmt: skip
        if chosen == str(Path(self.config.checkpoint.resume)):
            progress = replace(progress, resumed_from=str(folder.resolve()))
        self.engine.print(f"resumed from {folder}, step {progress.step}")
        return self.stamp(progress)

    def stamp(self, progress: Progress) -> Progress:
        return replace(
            progress,
            engine=self.engine.name,
            world_size=self.engine.world_size,
            optimizer=self.config.optim.name,
            parameters=self.engine.shapes(),
        )

    def load(self, folder: Path) -> None:
        """Restores model and optimizer; what the config says about the optimizer (decay, rates) stays as it says."""
        groups = self.engine.optimizer.param_groups
        settings = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        try:
            self.engine.load(folder)
        except (ValueError, KeyError, RuntimeError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"checkpoint.resume: {folder} does not fit this run's model or optimizer ({first[:160]}); restore the "
                "config it was written with, or name another checkpoint"
            ) from None
        for group, before in zip(self.engine.optimizer.param_groups, settings, strict=True):
            group.update(before)

    def choose(self) -> str | None:
        """The checkpoint folder to resume from, or None. Runs on the main process."""
        wanted = self.config.checkpoint.resume
        self.root.mkdir(parents=True, exist_ok=True)
        clean(self.root)
        if wanted not in ("auto", "never"):
            folder = Path(wanted)
            if not folder.is_dir():
                raise UserError(f"checkpoint.resume: {folder} is no folder; allowed are auto, never or a checkpoint")
            if problem := damage(folder):
                raise UserError(f"checkpoint.resume: {folder} cannot be used: {problem}; name another checkpoint")
            # The same command again, after a requeue for instance, goes on with what this run has done since.
            newest = next((own for own in newest_first(self.root) if not damage(own)), None)
            if newest is not None and read_progress(newest).resumed_from == str(folder.resolve()):
                return str(newest)
            return str(folder)
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
            UserError: it cannot be written (full disk), or the parameters are not finite; nothing half-written
                stays, earlier ones are intact.
        """
        if not all(self.engine.gather(all_finite(self.engine.network))):
            raise UserError(
                f"training: after step {progress.step} the network's weights are NaN or infinite, so no checkpoint is "
                f"written; newest checkpoint: {self.last or 'none'}; lower optim.lr or guidance.alpha, or set "
                "optim.clip_norm"
            )
        temporary = temporary_folder(self.root, progress.step)

        def create() -> None:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)

        self.guarded(lambda: self.engine.on_main(create), temporary)
        self.guarded(lambda: self.engine.save(temporary), temporary)
        published = self.guarded(lambda: self.engine.on_main(lambda: str(publish(temporary, progress))), temporary)
        self.last = Path(published)
        self.engine.on_main(lambda: prune(self.root, self.config.checkpoint.keep, progress.step))

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

    @contextmanager
    def weights(self, name: str) -> Iterator[None]:
        """Within it the prepared step has the weights that `save_weights` wrote to `name`, for evaluation only: the
        optimizer's state is not theirs. After it, it has its own again.

        Raises:
            UserError: some process cannot read them.
        """
        state, problem = {}, ""
        try:
            state = load_file(self.root / name)
        except (OSError, SafetensorError) as error:
            problem = str(error).splitlines()[0][:200]
        problems = [text for text in self.engine.gather(problem) if text]
        if problems:
            raise UserError(
                f"checkpoint: {self.root / name} cannot be read ({problems[0]}); restore it, or train again from an "
                "earlier checkpoint"
            )
        own = self.engine.network_state()
        self.engine.load_network(state)
        # Not after an error: others may still wait for this process in the evaluation.
        yield
        self.engine.load_network(own)

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


def all_finite(network: nn.Module) -> bool:
    """Whether this process's part of all parameters and buffers is free of NaN and infinity."""
    for tensor in [*network.parameters(), *network.buffers()]:
        # Sharded ones hide their local part: ZeRO-3 in `ds_tensor`, FSDP2 behind `to_local`.
        part = getattr(tensor, "ds_tensor", tensor).detach()
        part = part.to_local() if hasattr(part, "to_local") else part
        if part.is_floating_point() and not bool(torch.isfinite(part).all()):
            return False
    return True
