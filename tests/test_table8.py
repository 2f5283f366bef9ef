"""Every config of the project against Table 8 of the paper's supplement, which is written here once."""

from __future__ import annotations

import math
import re
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from paths import ROOT

from provscale.command_line import parse
from provscale.paper.experiments import read_experiments

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
TABLES_9_AND_10 = {
    ("cub_vgg16", "baseline"): (62.3, 50), ("cub_vgg16", "guided"): (65.1, 15),
    ("cub_deit_s", "baseline"): (91.5, 30), ("cub_deit_s", "guided"): (92.0, 10),
    ("cub_alia", "alia"): (71.7, 15), ("cub_alia", "guided"): (72.0, 10),
    ("iwildcam", "alia"): (77.7, 10), ("iwildcam", "guided"): (80.8, 5),
    ("waterbirds", "alia"): (71.4, 15), ("waterbirds", "guided"): (80.7, 10),
}  # fmt: skip
"""Accuracy and best epoch; the first two experiments are Table 9's."""
MAIN_TEXT = {
    ("cub_vgg16", "random"): 60.5, ("cub_vgg16", "independent"): 60.5, ("cub_vgg16", "none"): 61.1,
    ("cub_vgg16", "resizemix"): 57.6, ("cub_vgg16", "resizemix-guided"): 62.2, ("waterbirds", "baseline"): 62.2,
    ("ucf101", "nomix"): 37.4, ("ucf101", "baseline"): 38.0, ("ucf101", "guided"): 39.7,
}  # fmt: skip
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


def template(name: str, folder: Path, *words: str, **variables: str) -> list[str]:
    """What slurm/NAME.sh hands to `train`: a config and options. Jobs on a cluster are tests/slurm's."""
    job = (ROOT / "slurm" / "job.sh").read_text()
    experiments = job[job.index("experiment() {") : job.index("launcher() {")]
    (folder / "slurm").mkdir()
    (folder / "slurm" / "job.sh").write_text(f"train() {{ printf '%s\\n' \"$@\"; }}\n{experiments}")
    done = subprocess.run(
        ["bash", str(ROOT / "slurm" / f"{name}.sh"), *words], cwd=folder, text=True, check=True, capture_output=True,
        env={"PATH": "/usr/bin:/bin", **variables},
    )  # fmt: skip
    return done.stdout.splitlines()


@pytest.mark.parametrize("arm", ["guided", "alia", "baseline", "real"])
@pytest.mark.parametrize("name", [path.stem for path in sorted(CONFIGS.glob("*_resnet50_alia.yaml"))])
def test_slurm_arms_on_edits_are_the_commands_of_the_configs_head(name: str, arm: str, tmp_path: Path) -> None:
    """But for the run's name, which is the template's own."""
    command = re.search(rf"# +{arm}: +(?:the same with )?(.*?)\n", (CONFIGS / f"{name}.yaml").read_text())
    assert command is not None
    given = command[1].split() if arm != "guided" else []
    config, *words = template(name, tmp_path, arm, "--data.root", "DIR")
    assert config == f"configs/{name}.yaml"
    found = values(f"{name}.yaml", *words)
    assert found == {
        **values(f"{name}.yaml", *given, "--data.root", "DIR"),
        "run.name": f"{name}-{arm}",
        "run.dir": found["run.dir"],
    }
    assert (found["guidance.alpha"] > 0) == (arm == "guided")
    assert (found["synthesis.name"] == "edited") == (arm in ("guided", "alia"))


@pytest.mark.parametrize("name", ["cub_vgg16_cutmix", "cub_deit_s_cutmix"])
@pytest.mark.parametrize("task", range(6))
def test_slurm_array_is_both_arms_of_three_seeds(name: str, task: int, tmp_path: Path) -> None:
    config, *words = template(name, tmp_path, "--data.root", "CUB", SLURM_ARRAY_TASK_ID=str(task))
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


def test_the_paper_s_figures_beside_results() -> None:
    """configs/reproduce_tasks.yaml has those of Tables 9 and 10 and of the main text, and no others."""
    found: dict[tuple[str, str], Any] = {}
    for name, experiment in read_experiments().items():
        for arm in experiment.arms.values():
            if arm.paper.value is not None:
                in_table = arm.table == ("Table 9" if name.startswith(("cub_vgg16", "cub_deit")) else "Table 10")
                found[name, arm.name] = (arm.paper.value, arm.paper.best_epoch) if in_table else arm.paper.value
                assert in_table or arm.table == "Main text"
    assert found == TABLES_9_AND_10 | MAIN_TEXT
    times = read_experiments()["cub_vgg16"].arms
    assert [(one.paper.epoch_seconds, one.paper.hours) for one in (times["baseline"], times["guided"])] == [
        (140, 1.9), (150, 0.6),
    ]  # fmt: skip


def test_every_column_is_an_experiment_with_a_coarse_and_a_fine_sweep() -> None:
    """The coarse stage's powers of ten enclose Table 8's values, the fine stage has them in its middle."""
    columns = {column: name for name, column in tagged("table8") if not name.endswith("nomix.yaml")}
    assert set(columns) == set(COLUMNS)
    experiments = {f"{one.config}.yaml": name for name, one in read_experiments().items()}
    for column, config in columns.items():
        for stage in ("coarse", "fine"):
            path = CONFIGS / "sweeps" / f"{experiments[config]}_{stage}.yaml"
            sweep = yaml.safe_load(path.read_text())
            assert f"configs/{config}" in sweep["command"]
            for key in ("optim.lr", "optim.weight_decay", "guidance.alpha"):
                lowest, middle, highest = sweep["parameters"][key]["values"]
                value = TABLE_8[key][COLUMNS.index(column)]
                if stage == "fine":
                    assert (lowest, middle, highest) == (value / 2, value, value * 2)
                else:
                    assert lowest < value < highest
                    assert middle == pytest.approx(10 ** round(math.log10(middle)))
                    assert (middle / lowest, highest / middle) == pytest.approx((10, 10))
