"""Training and evaluation start as scripts, as modules, as commands and under Accelerate, from checkout and wheel."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from paths import ROOT
from tiny_runs import arguments

from provscale.run.run_folder import installed_version

# Imported before anything is built: says how the process was started, and which names the package's folder would hide.
PROBE = """
import importlib.util, sys
names = ("config", "data", "errors", "evaluate", "files", "models", "registry", "signals", "trainer")
specs = [(name, importlib.util.find_spec(name)) for name in names]
hidden = [name for name, spec in specs if spec is not None and spec.origin and "provscale" in spec.origin]
spec = sys.modules["__main__"].__spec__
raise RuntimeError(f"started as {spec.name if spec else None}, hidden {hidden}")
"""


def start(*words: str, cwd: Path = ROOT, path: str = str(ROOT)) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    (tmp_path / "probe.py").write_text(PROBE)
    return tmp_path / "probe.py"


def line(probe: Path, module: str = "provscale.train") -> str:
    place = f"provscale: imports: {probe}: {probe}, line 7"
    return f"{place}: RuntimeError: started as {module}, hidden []; correct it\n"


@pytest.mark.parametrize("entry", ["provscale/train.py", "-u -W ignore provscale/train.py", "-m provscale.train",
                                   "-m pdb -c continue provscale/train.py"])  # fmt: skip
def test_every_start_is_the_same(probe: Path, entry: str) -> None:
    found = start(sys.executable, *entry.split(), f"--imports=[{probe}]")
    assert found.stderr == line(probe)
    assert found.returncode == 2 or "pdb" in entry


def test_script_from_another_folder(probe: Path) -> None:
    found = start(sys.executable, str(ROOT / "provscale" / "train.py"), "--imports=[probe.py]", cwd=probe.parent)
    assert found.stderr == line(probe).replace(str(probe), "probe.py", 1)


def test_checkout_that_is_not_installed(probe: Path) -> None:
    """Without `site`, nothing but the working directory tells Python where provscale is."""
    packages = sysconfig.get_path("purelib")
    assert "provscale" not in os.listdir(packages)
    found = start(sys.executable, "-S", "provscale/train.py", f"--imports=[{probe}]", path=packages)
    assert found.stderr == line(probe)
    assert installed_version("surely-not-there") == "not installed"


def test_evaluation_as_a_script() -> None:
    for entry in (["provscale/evaluate.py"], ["-m", "provscale.evaluate"]):
        found = start(sys.executable, *entry)
        assert found.stderr.startswith("provscale: --weights: is not given")
        assert found.returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("entry", [["provscale/train.py"], ["-m", "provscale.train"]])
def test_accelerate_launch(probe: Path, entry: list[str]) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "-q", "--num_processes=1", "--num_machines=1",
              "--mixed_precision=no", "--dynamo_backend=no"]  # fmt: skip
    found = start(*launch, *entry, f"--imports=[{probe}]")
    assert line(probe) in found.stderr
    assert found.returncode == 1


def test_commands_name_functions() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts.keys() == {"provscale-train", "provscale-evaluate", "provscale-doctor"}
    for target in scripts.values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.slow
def test_installed_wheel(tmp_path: Path) -> None:
    """Trains and evaluates from an empty folder, by commands, with a config and a launch file of the wheel."""
    source, target, empty = tmp_path / "source", tmp_path / "target", tmp_path / "empty"
    empty.mkdir()
    for name in ("provscale", "configs", "launch"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    built = start(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source))
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    placed = start(*pip, "install", "--no-deps", "--target", str(target), str(wheel))
    assert placed.returncode == 0, placed.stderr
    shutil.rmtree(source)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        found = start(*words, cwd=empty, path=str(target))
        assert found.returncode == 0, found.stderr
        return found

    home = run(sys.executable, "-c", "import provscale; print(provscale.__path__[0])").stdout.strip()
    assert Path(home) == target / "provscale"
    tiny = [word for word in arguments(tmp_path) if word.startswith(("--tracking", "--run", "--train.self_check"))]
    tiny += ["--train.max_steps=1", "--data.options.test=8"]
    run(str(target / "bin" / "provscale-train"), "--cfg", "demo", *tiny)
    folder = tmp_path / "run"
    weights = ["--weights", str(folder / "checkpoints" / "final.safetensors"), "--json"]
    metrics = run(str(target / "bin" / "provscale-evaluate"), "--cfg", str(folder / "config.yaml"), *weights).stdout
    assert json.loads(metrics) == json.loads((folder / "summary.json").read_text())["test"]["last"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "-q"]
    tiny[tiny.index("--run.name=run")] = "--run.name=launched"
    config = str(target / "provscale" / "launch" / "single.yaml")
    run(*launch, "--config_file", config, "-m", "provscale.train", "--cfg=demo", *tiny)
    assert (tmp_path / "launched" / "report.html").exists()
    read = "from provscale.engine.zero_settings import read_json as read; print(read('launch/zero3.json'))"
    assert "'stage': 3" in run(sys.executable, "-c", read).stdout
