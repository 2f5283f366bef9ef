"""Both container definitions install what pyproject.toml and constraints.txt say, and copy what that needs.

Neither is built here: that needs a registry of images.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from paths import ROOT

CONTAINERS = ROOT / "containers"
INSTALL = (CONTAINERS / "install.sh").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def docker() -> tuple[str, dict[str, str], list[str]]:
    """Base image, copied paths with their places, and commands of the Dockerfile."""
    base, folder, copied, commands = "", "", {}, []
    for line in (CONTAINERS / "Dockerfile").read_text().splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base = rest
        elif word == "WORKDIR":
            folder = rest
        elif word == "COPY":
            *sources, place = rest.split()
            copied |= {source: f"{folder}/{source if place == './' else place}" for source in sources}
        elif word == "RUN":
            commands.append(f"cd {folder} && {rest}")
        else:
            assert word in ("#", "ENV", "CMD"), line
    return base, copied, commands


def apptainer() -> tuple[str, dict[str, str], list[str]]:
    """The same of provscale.def."""
    head, *sections = re.split(r"^%(?=\w)", (CONTAINERS / "provscale.def").read_text(), flags=re.MULTILINE)
    header = dict(line.split(": ", 1) for line in head.splitlines() if line and not line.startswith("#"))
    assert header["Bootstrap"] == "docker"
    bodies = {name: body.strip() for name, body in (section.split("\n", 1) for section in sections)}
    assert set(bodies) == {"files", "post", "runscript", "test"}
    copied = dict(line.split() for line in bodies["files"].splitlines())
    return header["From"], copied, [" && ".join(line.strip() for line in bodies["post"].splitlines())]


def test_both_are_the_same_image() -> None:
    assert docker() == apptainer()
    base, copied, commands = docker()
    assert all(place == f"/opt/provscale/{source}" for source, place in copied.items())
    assert commands == ["cd /opt/provscale && sh containers/install.sh"]
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert base == f"python:{oldest}-slim"


def test_installs_the_tested_versions_and_what_users_need() -> None:
    """Every extra but those for developers, OpenMMLab (a tool of its own) and those that few need."""
    assert subprocess.run(["sh", "-n", CONTAINERS / "install.sh"], check=False).returncode == 0
    found = re.search(r'pip install .*--constraint constraints\.txt "\.\[(.*)\]"', INSTALL)
    assert found is not None
    extras = set(found.group(1).split(","))
    assert set(PROJECT["optional-dependencies"]) - extras == {"dev", "edit", "skeleton", "puzzlemix"}
    textures = re.search(r"--no-deps (vpython==\S+)", INSTALL)
    assert textures is not None
    assert textures.group(1) in (ROOT / "Makefile").read_text()


def test_copied_files_are_enough_to_build_the_package(tmp_path: Path) -> None:
    for source in docker()[1]:
        place = tmp_path / "project" / source
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / source, place)
    command = "-m pip wheel --quiet --no-deps --no-index --no-build-isolation --wheel-dir wheels ./project"
    done = subprocess.run([sys.executable, *command.split()], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [path.suffix for path in (tmp_path / "wheels").iterdir()] == [".whl"]


def test_jobs_can_name_the_container() -> None:
    """site.env's array stands before the launcher, and the page shows how it is filled."""
    script = (
        "VENV= SLURM_JOB_ID=1; source slurm/site.env; CONTAINER=(apptainer exec --nv --bind '/a b' x.sif); "
        'set -- accelerate launch; printf "%s|" ${CONTAINER[@]+"${CONTAINER[@]}"} "$@"'
    )
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "apptainer|exec|--nv|--bind|/a b|x.sif|accelerate|launch|"
    assert 'bash slurm/node.sh ${CONTAINER[@]+"${CONTAINER[@]}"} "$@"' in (ROOT / "slurm" / "job.sh").read_text()
    assert "CONTAINER=(apptainer exec --nv" in (ROOT / "docs" / "clusters.md").read_text()
