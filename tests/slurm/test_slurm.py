"""The job scripts of slurm/ on a real SLURM cluster of two nodes on this machine (tests/helpers/slurm_cluster.sh).

All jobs train the same tiny network with the same seed on two nodes, so the undisturbed run says, bit by bit, how
every stopped, requeued and killed run must end. Needs root and apt.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import yaml
from cub_folder import make_cub
from listed_folders import make_waterbirds
from paths import ROOT
from safetensors.torch import load_file
from wandb.proto import wandb_internal_pb2

LOGS = ROOT / "slurm" / "logs"
STEPS = 120
TINY = [
    *("--data.name", "digits", "--data.image_size", "32", "--data.batch_size", "8"),
    *(
        "--data.options",
        "{train: 32, edits: 16, test: 16}",
        "--model.name",
        "test_resnet",
        "--model.pretrained",
        "none",
    ),
    *("--synthesis.name", "edited", "--tracking.images", "0", "--train.self_check", "false"),
    *("--tracking.wandb", "disabled", "--evaluation.every_epochs", "1000", "--train.epochs", "1000"),
    *("--checkpoint.every_steps", "25"),
]
LIMIT = 240.0  # seconds for anything to happen; a fraction of it is used on an idle machine
pytestmark = pytest.mark.slow


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, f"waited {LIMIT:.0f} s for {what}"
        time.sleep(0.2)


@dataclass
class Cluster:
    """Speaks to the cluster; remembers its jobs, whose logs it removes at the end."""

    env: dict[str, str]
    runs: Path
    jobs: list[str] = field(default_factory=list)

    def call(self, *command: str, **env: str) -> str:
        done = subprocess.run(command, cwd=ROOT, env={**self.env, **env}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def submit(
        self,
        script: str,
        *words: str,
        options: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        tiny: list[str] = TINY,
    ) -> str:
        """sbatch slurm/SCRIPT WORDS..., the tiny model's options before the words that are keys. Returns its number."""
        split = next((number for number, word in enumerate(words) if word.startswith("--")), len(words))
        arguments = [*words[:split], *tiny, "--run.dir", str(self.runs), *words[split:]]
        job = self.call("sbatch", "--parsable", *options, f"slurm/{script}", *arguments, **(env or {}))
        self.jobs.append(job)
        return job

    def log(self, job: str) -> str:
        return "".join(path.read_text() for path in sorted(LOGS.glob(f"*-{job}[_.]*")) if path.suffix == ".out")

    def ended(self, job: str) -> None:
        """Waits until the job is over for good, requeued or not."""
        wait_for(lambda: not self.call("squeue", "--noheader", "--jobs", job, "--states", "all", "--format", "%T")
                 .replace("COMPLETED", "").replace("FAILED", "").replace("CANCELLED", "").strip(),
                 f"the end of job {job}; its log: {self.log(job)}")  # fmt: skip

    def step(self, name: str) -> int:
        """The last step in a run's metrics.jsonl."""
        rows = read_rows(self.runs / name)
        return rows[-1]["step"] if rows else 0

    def reaches(self, name: str, step: int) -> None:
        wait_for(lambda: self.step(name) >= step, f"step {step} of {name}")

    def restarts(self, job: str) -> int:
        return len(re.findall(r"^slurm: job \S+ on ", self.log(job), flags=re.MULTILINE)) - 1


def read_rows(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:  # being written
            break
    return rows


def of_job(job: str, word: str, **environment: str) -> psutil.Process:
    """The oldest Python process of a SLURM job with this word in its command line and this environment."""
    found = []
    for process in psutil.process_iter():
        try:
            env = process.environ()
            if env.get("SLURM_JOB_ID") == job and all(env.get(key) == value for key, value in environment.items()):
                words = process.cmdline()
                # Not the shell that started it, which has the same words.
                found += [process] if word in words and "python" in words[0] else []
        except psutil.Error:
            continue
    return min(found, key=lambda process: process.create_time())


def training(job: str, rank: int) -> psutil.Process:
    return of_job(job, "provscale.train", RANK=str(rank))


def launcher(job: str, node: int) -> psutil.Process:
    return of_job(job, "launch", SLURM_NODEID=str(node), SLURM_PROCID=str(node))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    installed = bool(shutil.which("slurmctld") and shutil.which("munged"))
    if os.geteuid() != 0:
        pytest.skip("a SLURM cluster can only be started by root")
    if not installed and not shutil.which("apt-get"):
        pytest.skip("SLURM is not installed, and there is no apt-get to install it")
    # Not pytest's folder: munged runs as another user, who must be able to enter it.
    folder = Path(tempfile.mkdtemp(prefix="provscale-slurm-"))
    script = str(ROOT / "tests" / "helpers" / "slurm_cluster.sh")
    started = subprocess.run([script, "start", str(folder)], capture_output=True, text=True, check=False)
    try:
        if started.returncode and not shutil.which("slurmctld"):
            pytest.skip(f"SLURM cannot be installed: {started.stderr[-300:]}")
        assert started.returncode == 0, started.stderr
        env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "WANDB_"))}
        env |= {"SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
        # The environment that pytest runs in, wherever slurm/site.env expects one.
        env["VENV"] = ""
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        running = Cluster(env, folder / "runs")
        yield running
        for job in running.jobs:
            for path in [*LOGS.glob(f"*-{job}[_.]*"), *LOGS.glob(f"{job}[_.]*")]:
                path.unlink()
    finally:
        subprocess.run([script, "stop", str(folder)], check=False, timeout=120)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def reference(cluster: Cluster) -> tuple[str, str]:
    """The undisturbed run, started while the port it would take is taken, and a second job with its run folder.

    Returns:
        The numbers of both jobs, which have ended.
    """
    first = cluster.submit("demo.sh", "guided", "--run.name", "reference", "--train.max_steps", str(STEPS),
                           options=("--hold",))  # fmt: skip
    with socket.socket() as occupied:
        occupied.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        occupied.bind(("127.0.0.1", 15000 + int(first) * 16 % 16000))
        occupied.listen()
        cluster.call("scontrol", "release", first)
        cluster.reaches("reference", 5)
    # The first one waits while the second one tries.
    main = training(first, 0)
    main.suspend()
    second = cluster.submit("demo.sh", "guided", "--run.name", "reference", "--train.max_steps", str(STEPS))
    try:
        cluster.ended(second)
    finally:
        main.resume()
    cluster.ended(first)
    return first, second


def same_as_reference(cluster: Cluster, name: str) -> None:
    """Final parameters and all numbers that do not measure time are equal to the undisturbed run's."""
    expected = load_file(cluster.runs / "reference" / "checkpoints" / "final.safetensors")
    found = load_file(cluster.runs / name / "checkpoints" / "final.safetensors")
    assert found.keys() == expected.keys()
    assert all(found[key].equal(expected[key]) for key in expected)
    timing = ("samples_per_second", "data_wait")
    kept = [
        [{key: value for key, value in row.items() if key not in timing} for row in read_rows(cluster.runs / run)]
        for run in ("reference", name)
    ]
    assert kept[1] == kept[0]
    assert [row["step"] for row in kept[1] if row["kind"] == "train"] == list(range(1, STEPS + 1))


def test_demo_on_two_nodes(cluster: Cluster, reference: tuple[str, str]) -> None:
    log = cluster.log(reference[0])
    assert "slurm: finished, results in" in log
    assert json.loads((cluster.runs / "reference" / "summary.json").read_text())["world_size"] == 2
    assert cluster.restarts(reference[0]) == 0
    assert not list(LOGS.glob(f"{reference[0]}.*"))  # nothing of the job is left to mislead a later one


def test_port_in_use(cluster: Cluster, reference: tuple[str, str]) -> None:
    port = 15000 + int(reference[0]) * 16 % 16000
    log = cluster.log(reference[0])
    assert f"slurm: port {port} is in use on 127.0.0.1, trying {port + 1}" in log
    assert f"--main_process_port {port + 1} " in log


def test_two_jobs_one_run_folder(cluster: Cluster, reference: tuple[str, str]) -> None:
    first, second = reference
    log = cluster.log(second)
    assert re.search(rf"provscale: run\.name: .*/reference is in use by job {first}, process \d+ on \S+; choose", log)
    assert "slurm: not started again" in log
    assert cluster.restarts(second) == 0


def wandb_steps(file: Path) -> list[int]:
    """global_step of each row of training in W&B's offline file: 32 KiB blocks of (crc32, length, type) chunks."""
    content = file.read_bytes()
    position, record, steps = 7, b"", []
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        if kind == 0:
            break
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            message = wandb_internal_pb2.Record()
            message.ParseFromString(record)
            record = b""
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in message.history.item}
            if "train/loss" in items:
                steps.append(int(items["global_step"]))
    return steps


def test_stopped_and_requeued(cluster: Cluster, reference: tuple[str, str]) -> None:
    """USR1 (SLURM's warning), then `scontrol requeue` (what preemption does): two checkpoints, two exact resumes."""
    job = cluster.submit("demo.sh", "--run.name", "stopped", "--train.max_steps", str(STEPS),
                         "--tracking.wandb", "offline")  # fmt: skip
    cluster.reaches("stopped", 20)
    cluster.call("scancel", "--signal=USR1", job)
    wait_for(lambda: cluster.restarts(job) == 1, "the restart after USR1")
    first_stop = int(re.findall(r"asked to stop: checkpoint of step (\d+)", cluster.log(job))[0])
    cluster.reaches("stopped", first_stop + 20)
    cluster.call("scontrol", "requeue", job)
    cluster.ended(job)
    log = cluster.log(job)
    assert cluster.restarts(job) == 2
    stops = [int(step) for step in re.findall(r"asked to stop: checkpoint of step (\d+)", log)]
    resumed = [int(step) for step in re.findall(r"resumed from \S+, step (\d+)", log)]
    assert len(stops) == 2
    assert resumed == stops
    assert f"starting job {job} again" in log
    assert "SLURM is ending the job (COMPLETING)" in log
    same_as_reference(cluster, "stopped")
    # W&B: every session under one id, and between them every step once.
    identity = (cluster.runs / "stopped" / "wandb_id.txt").read_text()
    sessions = sorted((cluster.runs / "stopped" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(sessions) >= 2
    assert all(file.name == f"run-{identity}.wandb" for file in sessions)
    assert [step for file in sessions for step in wandb_steps(file)] == list(range(1, STEPS + 1))


def test_killed_rank_and_killed_launcher(cluster: Cluster, reference: tuple[str, str]) -> None:
    """kill -9 leaves no time to save: the run resumes from its newest checkpoint, every 25 steps."""
    job = cluster.submit("demo.sh", "guided", "--run.name", "killed", "--train.max_steps", str(STEPS))
    cluster.reaches("killed", 30)
    training(job, 1).send_signal(signal.SIGKILL)
    wait_for(lambda: cluster.restarts(job) == 1, "the restart after the killed rank")
    cluster.reaches("killed", 60)
    launcher(job, 1).send_signal(signal.SIGKILL)
    cluster.ended(job)
    log = cluster.log(job)
    resumed = [int(step) for step in re.findall(r"resumed from \S+, step (\d+)", log)]
    assert len(resumed) == 2
    assert all(step % 25 == 0 and step >= 25 for step in resumed)
    assert len(re.findall(r"slurm: died \(exit code \d+\), starting job", log)) == 2
    same_as_reference(cluster, "killed")


def test_alpha_sweep_as_an_array(cluster: Cluster) -> None:
    job = cluster.submit("sweep_alpha.sh", "--train.max_steps", "3", options=("--array=0-1",),
                         env={"ALPHAS": "0 0.05"})  # fmt: skip
    cluster.ended(job)
    assert cluster.log(job).count("slurm: finished") == 2
    for alpha in (0.0, 0.05):
        folder = cluster.runs / f"demo-alpha-{alpha:g}"
        assert yaml.safe_load((folder / "config.yaml").read_text())["guidance"]["alpha"] == alpha
        guided = [row["loss"] != row["loss_cls"] for row in read_rows(folder) if row["kind"] == "train"]
        assert guided == [alpha > 0] * 3


def test_an_experiment_by_jobs(cluster: Cluster) -> None:
    """`tools.reproduce --slurm`: a job on two nodes for each run; when they have ended nothing is submitted again."""
    runs = cluster.runs / "reproduced"
    command = f"{sys.executable} -m tools.reproduce --experiment demo --arm guided --seeds 3 --dir {runs}".split()
    command += ["--slurm=--nodes=2 --gpus-per-node=0 --cpus-per-task=1", *TINY, "--train.max_steps=3"]
    command += ["--model.name", "plain_cnn"]  # the experiment's own, or it would be none of its arms
    jobs = dict(re.findall(r"job (\d+): (\S+)", cluster.call(*command)))
    cluster.jobs += jobs
    assert list(jobs.values()) == ["demo-guided-seed3"]
    for job, name in jobs.items():
        cluster.ended(job)
        assert json.loads((runs / name / "summary.json").read_text())["world_size"] == 2, cluster.log(job)
    assert "job " not in cluster.call(*command)
    cluster.call(sys.executable, "-m", "tools.report", *map(str, runs.iterdir()), "--tables", str(runs / "tables"))
    assert "| guided | 3 | worst_group |" in (runs / "tables" / "tables.md").read_text()


AGENT = """#!{python}
# Stands in for wandb's agent, which needs a server: starts one run the way it does, and notes that it was called.
import os, subprocess, sys
with open("{calls}", "a") as file:
    print(*sys.argv[1:], file=file)
os.environ.update(WANDB_SWEEP_ID="s1", WANDB_RUN_ID="run1")
sys.exit(subprocess.call(["/usr/bin/env", "accelerate", "launch", "provscale/train.py", *{arguments}]))
"""


def test_sweep_agent_finishes_the_run_it_was_stopped_in(cluster: Cluster) -> None:
    programs = cluster.runs.parent / "programs"
    programs.mkdir()
    calls = programs / "calls"
    arguments = ["--cfg", "configs/demo.yaml", *TINY, "--run.dir", str(cluster.runs), "--run.name", "swept",
                 "--train.max_steps", "100", "--tracking.wandb", "offline", "--guidance.alpha=0.05"]  # fmt: skip
    (programs / "wandb").write_text(AGENT.format(python=sys.executable, calls=calls, arguments=arguments))
    (programs / "wandb").chmod(0o755)
    job = cluster.submit("sweep_alpha.sh", options=("--array=0",),
                         env={"SWEEP_ID": "team/project/s1", "PATH": f"{programs}:{cluster.env['PATH']}"})  # fmt: skip
    cluster.reaches("swept-run1", 10)
    cluster.call("scancel", "--signal=USR1", job)
    cluster.ended(job)
    assert calls.read_text() == "agent --count 1 team/project/s1\n"  # once: the second time no new run was asked for
    assert cluster.restarts(job) == 1
    folder = cluster.runs / "swept-run1"
    assert f"slurm: finished, results in {folder}" in cluster.log(job)
    assert [row["step"] for row in read_rows(folder) if row["kind"] == "train"] == list(range(1, 101))
    sessions = sorted(folder.glob("wandb/offline-run-*/run-run1.wandb"))
    assert [step for file in sessions for step in wandb_steps(file)] == list(range(1, 101))


def test_zero_on_two_nodes(cluster: Cluster) -> None:
    pytest.importorskip("deepspeed")
    job = cluster.submit("multinode_zero.sh", "demo", "guided", "--run.name", "zero", "--train.max_steps", "3",
                         options=("--gpus-per-node=0", "--cpus-per-task=1"), env={"STAGE": "2"})  # fmt: skip
    cluster.ended(job)
    summary = json.loads((cluster.runs / "zero" / "summary.json").read_text())
    assert (summary["engine"], summary["world_size"], summary["steps"]) == ("zero2", 2, 3), cluster.log(job)


TEMPLATES = ("cub_vgg16_cutmix", "cub_vgg16_cutmix_baseline", "cub_deit_s_cutmix", "waterbirds_resnet50_alia",
             "iwildcam_resnet50_alia")  # fmt: skip
TWO_NODES = ("--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1")
SMALL = ["--data.image_size", "32", "--data.workers", "0", "--data.batch_size", "4", "--model.pretrained", "none",
         "--train.max_steps", "1", "--train.self_check", "false", "--tracking.images", "0",
         "--tracking.wandb", "disabled"]  # fmt: skip


def test_columns_of_table_8(cluster: Cluster) -> None:
    """Both arms of a localisation template as an array, and an arm of one on edits, from images on disk. SLURM accepts
    the others; which arm each of their tasks is, tests/test_table8.py says."""
    for name in TEMPLATES:
        cluster.call("sbatch", "--test-only", *TWO_NODES, f"slurm/{name}.sh")
    birds, places = make_cub(cluster.runs.parent / "cub"), cluster.runs.parent / "waterbirds"
    make_waterbirds(places)
    sat = "{img_size: 32, embed_dim: 24, depth: 3, num_heads: 3}"
    jobs = [
        cluster.submit("cub_deit_s_cutmix.sh", "--data.root", str(birds), "--model.options", sat,
                       "--synthesis.probability", "1", options=("--array=0-1", *TWO_NODES), tiny=SMALL),
        cluster.submit("waterbirds_resnet50_alia.sh", "alia", "--data.root", str(places), "--model.name", "test_resnet",
                       "--synthesis.added", "null", options=TWO_NODES, tiny=SMALL),
    ]  # fmt: skip
    for job in jobs:
        cluster.ended(job)
    assert [cluster.log(job).count("slurm: finished") for job in jobs] == [2, 1], [cluster.log(job) for job in jobs]
    for run, guided in (
        ("cub_deit_s_cutmix-guided-0", True),
        ("cub_deit_s_cutmix-baseline-0", False),
        ("waterbirds_resnet50_alia-alia", False),
    ):
        assert json.loads((cluster.runs / run / "summary.json").read_text())["world_size"] == 2
        rows = read_rows(cluster.runs / run)
        assert [row["loss_guidance"] > 0 for row in rows if row["kind"] == "train"] == [guided]
        assert {row["at"] for row in rows if row["kind"] == "test"} == {"best", "last"}
