"""Every config of the project against Table 8 of the paper's supplement, which is written here once."""

from __future__ import annotations

import re
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from paths import ROOT

from provscale.command_line import parse

CONFIGS = ROOT / "configs"
COLUMNS = ("ucf101-24", "cub-vgg16", "cub-deit-s", "cub-alia", "iwildcam-alia", "waterbirds-alia")
TABLE_8: dict[str, tuple[Any, ...]] = {
    "synthesis.name": ("batchmix", "cutmix", "cutmix", "edited", "edited", "edited"),
    "synthesis.probability": (1.0, 1.0, 0.79, None, None, None),
    "synthesis.added": (None, None, None, 1000, 2224, 839),
    "guidance.alpha": (0.01, 0.05, 0.01, 0.1, 0.1, 0.1),
    "optim.name": ("sgd", "sgd", "adamw", "sgd", "sgd", "sgd"),
    "train.epochs": (40, 15, 10, 20, 10, 20),
    "data.batch_size": (30, 32, 32, 128, 128, 128),
    "optim.lr": (7.5e-3, 1e-2, 1e-5, 1e-3, 1e-3, 1e-3),
    "optim.schedule": ("linear", "linear", "linear", "cosine", "cosine", "cosine"),
    "optim.weight_decay": (2.5e-5, 5e-4, 5e-3, 1e-5, 1e-4, 1e-4),
    "optim.momentum": (0.9,) * 6,
}
"""None: the table says nothing there."""
BASELINE_EPOCHS = {"cub-vgg16": 50, "cub-deit-s": 30}
"""Table 9: the epoch at which the baseline is best."""
SYNTHESIS = ("synthesis.name", "synthesis.probability", "synthesis.added", "guidance.alpha")
EXPERIMENTS = ("ucf101", "cub", "iwildcam", "waterbirds")


def tagged(table: str) -> list[tuple[str, str]]:
    """File and column of every config with a tag such as table8-cub-vgg16."""
    found = []
    for path in sorted(CONFIGS.glob("*.yaml")):
        tags = (yaml.safe_load(path.read_text()).get("run") or {}).get("tags", [])
        found += [(path.name, tag.removeprefix(f"{table}-")) for tag in tags if tag.startswith(f"{table}-")]
    return found


def values(name: str, *words: str) -> dict[str, Any]:
    """A config's values by their dotted keys."""
    flat: dict[str, Any] = {}
    for section, content in asdict(parse(["--cfg", str(CONFIGS / name), *words])).items():
        if isinstance(content, dict):
            flat |= {f"{section}.{key}": value for key, value in content.items()}
        else:
            flat[section] = content
    return flat


def template_words(name: str, folder: Path, *words: str, **environment: str) -> list[str]:
    """Config and options that slurm/NAME.sh trains with, from a `train` that prints what it is given."""
    job = (ROOT / "slurm" / "job.sh").read_text()
    experiment = job[job.index("experiment() {") : job.index("launcher() {")]
    (folder / "slurm").mkdir()
    (folder / "slurm" / "job.sh").write_text(f"train() {{ printf '%s\\n' \"$@\"; }}\n{experiment}")
    done = subprocess.run(
        ["bash", str(ROOT / "slurm" / f"{name}.sh"), *words], cwd=folder, text=True, check=True,
        env={"PATH": "/usr/bin:/bin", **environment}, capture_output=True,
    )  # fmt: skip
    return done.stdout.splitlines()


@pytest.mark.parametrize(("name", "column"), tagged("table8"))
def test_config_is_its_column(name: str, column: str) -> None:
    """A config without mixing is a reference below the column: its synthesis is another one."""
    place, found = COLUMNS.index(column), values(name)
    expected = {key: row[place] for key, row in TABLE_8.items() if row[place] is not None}
    if found["synthesis.name"] == "none":
        expected = {key: value for key, value in expected.items() if key not in SYNTHESIS}
    assert {key: found[key] for key in expected} == expected


def test_every_experiment_says_which_column_it_is() -> None:
    named = {name for table in ("table8", "table9") for name, _ in tagged(table)}
    experiments = {path.name for path in CONFIGS.glob("*.yaml") if path.name.startswith(EXPERIMENTS)}
    assert named == experiments
    assert {column for _, column in tagged("table8")} == set(COLUMNS)


@pytest.mark.parametrize("name", ["cub_vgg16_cutmix", "cub_deit_s_cutmix"])
def test_baseline_differs_in_alpha_and_epochs_only(name: str) -> None:
    """The command in the config's head is the other arm."""
    text = (CONFIGS / f"{name}.yaml").read_text()
    command = re.search(r"baseline: +the same with (.*?)\n", text)
    assert command is not None
    guided, baseline = values(f"{name}.yaml"), values(f"{name}.yaml", *command[1].split())
    changed = {key for key in guided if guided[key] != baseline[key]}
    assert changed == {"run.name", "guidance.alpha", "train.epochs"}
    assert baseline["guidance.alpha"] == 0
    (column,) = (column for file, column in tagged("table8") if file == f"{name}.yaml")
    assert baseline["train.epochs"] == BASELINE_EPOCHS[column]


def test_the_baseline_with_a_rate_of_its_own_differs_in_nothing_else() -> None:
    guided, own = values("cub_vgg16_cutmix.yaml"), values("cub_vgg16_cutmix_baseline.yaml")
    changed = {key for key in guided if guided[key] != own[key]}
    assert changed == {"run.name", "run.tags", "guidance.alpha", "train.epochs", "optim.lr"}
    assert (own["guidance.alpha"], own["train.epochs"], own["optim.lr"]) == (0, BASELINE_EPOCHS["cub-vgg16"], 1.27e-5)


@pytest.mark.parametrize("name", ["cub", "iwildcam", "waterbirds"])
@pytest.mark.parametrize("arm", ["guided", "alia", "baseline", "real"])
def test_arms_of_edits_are_the_same_in_template_and_config(name: str, arm: str, tmp_path: Path) -> None:
    """The template's words, and the command in the config's head, change what the arm is about and nothing else."""
    config = f"{name}_resnet50_alia"
    written, *words = template_words(config, tmp_path, arm, "--data.root", "DIR")
    text = (CONFIGS / written.removeprefix("configs/")).read_text()
    command = re.search(rf"{arm}: +(?:the same with |accelerate launch provscale/train.py --cfg \S+)(.*?)\n", text)
    assert command is not None
    plain, found = values(f"{config}.yaml"), values(f"{config}.yaml", *words)
    by_hand = values(f"{config}.yaml", *command[1].split(), "--data.root", "DIR")
    changed = {key for key in plain if plain[key] != found[key]}
    assert {key for key in found if found[key] != by_hand[key]} <= {"run.name"}
    real = {"synthesis.name", "synthesis.added", "synthesis.options"}
    expected = {"guided": set(), "alia": set(), "baseline": real, "real": real | {"data.options"}}[arm]
    expected |= set() if arm == "guided" else {"guidance.alpha"}
    assert changed == expected | {"run.name", "data.root"}
    assert found["guidance.alpha"] == (TABLE_8["guidance.alpha"][3] if arm == "guided" else 0)
    assert found["data.options"].get("extra", False) == (arm == "real")


@pytest.mark.parametrize("name", ["cub_vgg16_cutmix", "cub_deit_s_cutmix"])
@pytest.mark.parametrize("task", range(6))
def test_slurm_array_is_both_arms_of_three_seeds(name: str, task: int, tmp_path: Path) -> None:
    """The array on a cluster is tests/slurm's."""
    config, *words = template_words(name, tmp_path, "--data.root", "CUB", SLURM_ARRAY_TASK_ID=str(task))
    assert config == f"configs/{name}.yaml"
    found = values(f"{name}.yaml", *words)
    arm = ("guided", "baseline")[task % 2]
    assert (found["run.name"], found["seed"], found["data.root"]) == (f"{name}-{arm}-{task // 2}", task // 2, "CUB")
    plain = values(f"{name}.yaml")
    epochs = {
        "guided": plain["train.epochs"],
        "baseline": BASELINE_EPOCHS[name.removesuffix("_cutmix").replace("_", "-")],
    }
    assert found["train.epochs"] == epochs[arm]
    assert found["guidance.alpha"] == (plain["guidance.alpha"] if arm == "guided" else 0)
