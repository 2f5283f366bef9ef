"""One of two processes dies: what the launcher and the other one do."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from engine_runs import command, environment
from paths import ROOT


def test_the_death_of_a_process_ends_the_job(tmp_path: Path) -> None:
    """Killed, or by an exception: within 60 s, with what happened on standard error. Both jobs run at once."""
    jobs = {}
    for task in ("killed", "raises"):
        (tmp_path / task).mkdir()
        log = (tmp_path / task / "log").open("w")
        jobs[task] = subprocess.Popen(
            command("ddp", tmp_path / task, task), cwd=ROOT, env=environment(), stderr=log, stdout=log
        )
    for task, job in jobs.items():
        log_file = tmp_path / task / "log"
        deadline = time.monotonic() + 200
        while "rank 1 trains" not in log_file.read_text():
            assert time.monotonic() < deadline, log_file.read_text()[-3000:]
            time.sleep(0.2)
        assert job.wait(timeout=60) != 0
        text = log_file.read_text()
        if task == "killed":
            assert "SIGKILL" in text
        else:
            assert "Traceback" in text
            assert "RuntimeError: planted failure" in text
