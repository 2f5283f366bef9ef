"""What goes wrong outside the program: one clear line, exit code 2, nothing half-written."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing import resource_sharer
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import BROKEN, make_image_folder, truncate
from paths import ROOT
from tiny_runs import arguments, newest, rows, steps_saved, train

from provscale.data.images.digits import TexturedDigits
from provscale.data.loader import LoadedItems, make_loader
from provscale.data.plan import BatchPlan
from provscale.errors import UserError
from provscale.run.checkpoint_folder import damage
from provscale.sample import Item
from provscale.train import main
from provscale.trainer import Trainer


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs training that must end with code 2; returns the one line it leaves on standard error."""

    def run(*parts: str, name: str = "run", progress: bool = False, **changes: Any) -> str:
        capsys.readouterr()
        assert main(arguments(tmp_path, name, **changes)) == 2
        error = capsys.readouterr().err
        lines = [line for line in error.splitlines() if line.startswith("provscale: ")]
        assert len(lines) == 1
        assert error.endswith(lines[0] + "\n")
        assert progress or error == lines[0] + "\n"
        for part in parts:
            assert part in lines[0], lines[0]
        assert not list(tmp_path.rglob(".*.new"))
        assert not list(tmp_path.rglob(".saving-*"))
        return lines[0]

    return run


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"data__name": "digit"}, ["data.name: unknown name 'digit'", "'digits'"]),
        ({"model__name": "resnet19"}, ["model.name: unknown model 'resnet19'", "did you mean"]),
        ({"model__options": "{drop: 1}"}, ["model.options: {'drop': 1}"]),
        ({"model__pretrained": "/nowhere.pt"}, ["model.pretrained: /nowhere.pt does not exist"]),
        ({"synthesis__name": "cutmx"}, ["synthesis.name: unknown name 'cutmx'", "'cutmix'"]),
        ({"synthesis__options": "{beta: -1}"}, ["synthesis.options.beta: is -1"]),
        ({"synthesis__options": "{gamma: 1}"}, ["synthesis.options.gamma: unknown option of cutmix"]),
        ({"synthesis__added": 3}, ["synthesis.added: is 3", "adds no edited images"]),
        ({"synthesis__name": "edited", "synthesis__added": 99}, ["synthesis.added: is 99", "only 16"]),
        ({"evaluation__metrics": "[acc]"}, ["evaluation.metrics: unknown name 'acc'"]),
        ({"data__options": "{trian: 3}"}, ["data.options.trian: unknown option of digits, did you mean 'train'?"]),
        ({"data__batch_size": 64}, ["data.batch_size: 64 exceeds the 32 training samples"]),
        ({"train__accumulation": 3}, ["data.batch_size: 8 cannot be divided equally", "train.accumulation 3"]),
        ({"data__batch_size": 12, "train__accumulation": 3, "data__drop_last": "false"},
         ["data.drop_last: the last batch has 8 samples"]),
        ({"data__name": "imagefolder", "data__options": "{}"}, ["data.root: is not set"]),
        ({"data__name": "imagefolder", "data__options": "{}", "data__root": "/nowhere"},
         ["data.root: /nowhere is not a folder"]),
        ({"data__options": "{train: 0}"}, ["data.options.train: is 0, must be at least 1"]),
    ],
)  # fmt: skip
def test_config_that_does_not_fit(refused: Callable[..., str], tmp_path: Path, changes: Any, parts: Any) -> None:
    refused(*parts, **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("case", BROKEN)
def test_broken_image_folder(refused: Callable[..., str], tmp_path: Path, case: str) -> None:
    root = make_image_folder(tmp_path / "images")
    damage_it, parts, early = BROKEN[case]
    damage_it(root)
    refused(*parts, data__name="imagefolder", data__root=root, data__options="{crop: false}", synthesis__name="edited",
            progress=not early)  # fmt: skip
    assert (tmp_path / "run").exists() is not early
    assert not list(tmp_path.rglob("step-*"))


def test_mistake_inside_a_loader_process_is_the_same_line(refused: Callable[..., str], tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "images")
    truncate(root / "train/3.png")
    common = {"data__name": "imagefolder", "data__root": root, "data__options": "{}", "progress": True}
    alone = refused("train/3.png: cannot be read as an image", **common)
    assert refused(name="workers", data__workers=2, **common) == alone


class Suicidal(TexturedDigits):
    """Kills the process that loads item 3, as the system does when memory runs out."""

    def __getitem__(self, index: int) -> Item:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_loader_process_that_dies(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("provscale.data.images.embedded.TexturedDigits", Suicidal)
    refused("data.workers: DataLoader worker", "lower data.workers", data__workers=1, progress=True)


class Unreachable(TexturedDigits):
    """Its loader process sends batches whose memory nobody hands out any more, as when it dies right after sending."""

    def __getitem__(self, index: int) -> Item:
        sharer: Any = resource_sharer._resource_sharer  # type: ignore[attr-defined]
        if sharer._address is None:
            sharer._start()
            sharer._address = str(Path(tempfile.mkdtemp()) / "closed")
            with socket.socket(socket.AF_UNIX) as closed:
                closed.bind(sharer._address)
        return super().__getitem__(index)


def test_loader_process_that_died_after_sending(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch still takes it for alive, so the connection's own error arrives."""
    monkeypatch.setattr("provscale.data.images.embedded.TexturedDigits", Unreachable)
    refused("data.workers: DataLoader worker exited unexpectedly (ConnectionRefusedError)", "lower data.workers",
            data__workers=1, progress=True)  # fmt: skip


class Poisoned(TexturedDigits):
    def __getitem__(self, index: int) -> Item:
        item = super().__getitem__(index)
        item.inputs = item.inputs.float()
        if index == 3:
            item.inputs[0, 0, 0] = float("nan")
            item.name = "poisoned.png"
        return item


def test_nan_in_inputs() -> None:
    data = Poisoned("train", size=32, samples=8)
    items = LoadedItems(data, lambda item: item, lambda item: item, 2, 0)
    with pytest.raises(UserError, match=r"^poisoned.png: the inputs contain NaN or infinity"):
        list(make_loader(items, [[(0, index) for index in range(8)]], 0, False))


def test_batch_that_processes_cannot_share() -> None:
    with pytest.raises(UserError, match=r"data.batch_size: 8 cannot be divided equally over 3 processes.*e.g. 6"):
        BatchPlan(32, 8, 0, world_size=3)


def test_diverged_training_stops_with_step_and_files(refused: Callable[..., str], tmp_path: Path) -> None:
    """lr 1e30: the loss of step 2 is not finite. The checkpoint of step 1 stays, complete; the batch is named."""
    line = refused("the loss is", "at step 2", optim__lr=1e30, checkpoint__every_steps=1, progress=True)
    named = re.findall(r"[\w-]+/?[\w-]*\d+", line.split("look at the batch: ")[1])
    assert len(named) >= 8, line
    assert steps_saved(tmp_path / "run") == [1]
    assert not damage(newest(tmp_path / "run"))
    assert str(newest(tmp_path / "run")) in line
    assert [row["step"] for row in rows(tmp_path / "run")] == [1]


def test_weights_that_are_not_finite_are_never_saved(refused: Callable[..., str], tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """The loss of step 3 is finite, its update is not: the checkpoint of step 2 stays the newest."""
    original = Trainer.optimizer_step

    def optimizer_step(self: Trainer, *rest: Any) -> None:
        original(self, *rest)
        if self.progress.step == 3:
            with torch.no_grad():
                next(self.step.parameters()).mul_(float("nan"))

    monkeypatch.setattr(Trainer, "optimizer_step", optimizer_step)
    refused("after step 3 the network's weights are NaN or infinite", checkpoint__every_steps=1, progress=True)
    assert steps_saved(tmp_path / "run") == [1, 2]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system with room for about two checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=7m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_disk_that_fills_up(refused: Callable[..., str], tmp_path: Path, small_disk: Path) -> None:
    """A save that fails leaves the earlier checkpoint; with space again, the run ends as if nothing had been."""
    changes = {"run__dir": small_disk, "checkpoint__every_steps": 1, "checkpoint__keep": 9}
    refused("cannot be written", "free space", "checkpoint.resume auto", progress=True, **changes)
    saved = steps_saved(small_disk / "run")
    assert saved
    assert not damage(newest(small_disk / "run"))
    shutil.copytree(small_disk / "run", tmp_path / "run")
    again = train(tmp_path, checkpoint__every_steps=1, checkpoint__keep=2)
    assert rows(again) == rows(train(tmp_path, "whole"))


@pytest.mark.slow
def test_file_size_limit(tmp_path: Path) -> None:
    """A quota on file sizes (EFBIG), in a process of its own; the optimizer's file alone is over 1 MB."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    words = arguments(tmp_path, checkpoint__every_steps=1)
    done = subprocess.run([sys.executable, "provscale/train.py", *words], cwd=ROOT, preexec_fn=limit, text=True,
                          capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"provscale: checkpoint: .* cannot be written", done.stderr)
    assert not list(tmp_path.rglob("step-*"))
    assert not list(tmp_path.rglob(".saving-*"))


def test_run_folder_that_cannot_be_made(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused("run.dir:", "cannot be written (Not a directory)", run__dir=tmp_path / "file")


def test_changed_config(refused: Callable[..., str], tmp_path: Path) -> None:
    run = train(tmp_path, train__max_steps=1)
    before = (run / "config.yaml").read_text()
    changed = {"train__max_steps": 1}
    refused("optim.lr: is 0.5", "started with 0.02", optim__lr=0.5, **changed)
    refused("model.name: is test_vit", "started with test_resnet", model__name="test_vit", model__options="{}",
            **changed)  # fmt: skip
    refused("data.options.train: is 24, but", data__options="{train: 24, edits: 16, test: 10}", **changed)
    refused("checkpoint.resume: is never", checkpoint__resume="never", **changed)
    assert (run / "config.yaml").read_text() == before
    train(tmp_path, data__workers=1, checkpoint__keep=5, tracking__log_every=2, **changed)
    (run / "config.yaml").write_text("broken: [")
    refused("config.yaml: is no longer the config", **changed)


def test_a_run_without_checkpoint_may_be_started_differently(tmp_path: Path) -> None:
    """Nothing would be lost: the config of a run that never saved anything is replaced."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("optim: {lr: 9.0}\n")
    train(tmp_path, train__max_steps=1)


def test_checkpoint_of_another_model_or_optimizer(refused: Callable[..., str], tmp_path: Path) -> None:
    saved = newest(train(tmp_path, "other", train__max_steps=1))
    common = {"checkpoint__resume": saved, "train__max_steps": 2}
    refused(f"{saved} is of another model", "tensors differ", model__name="test_vit", model__options="{img_size: 32}",
            **common)  # fmt: skip
    refused("holds the state of optim.name sgd, this run uses adamw", name="b", optim__name="adamw", **common)
    (saved / "model.safetensors").write_bytes(b"")
    refused("cannot be used: model.safetensors has another size", name="c", **common)
    refused("/nowhere is no folder", name="d", checkpoint__resume="/nowhere")


def test_two_processes_on_one_run_folder(refused: Callable[..., str], tmp_path: Path) -> None:
    """Another process holds the lock; the line says which."""
    (tmp_path / "run").mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); "
         "file.write('process 4711 on node7'); file.flush(); print('held', flush=True); input()",
         str(tmp_path / "run" / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    refused("run.name:", "is in use by process 4711 on node7")
    holder.communicate("\n")
    train(tmp_path, train__max_steps=1)


def test_best_metric_that_does_not_exist(refused: Callable[..., str]) -> None:
    refused("evaluation.best: 'f1' is not among the metrics: accuracy", evaluation__best="f1", progress=True)


def test_keyboard_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                            capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "optimizer_step", interrupt)
    assert main(arguments(tmp_path)) == 130
    error = capsys.readouterr().err
    assert error.endswith("\nprovscale: interrupted; start again to resume from the newest checkpoint\n")
    assert "Traceback" not in error
