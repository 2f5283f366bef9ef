"""The benchmark's other half: whole training steps under each engine, timed in turns.

Every engine runs in processes of its own, started by `accelerate launch` as a user would; they wait while another
engine's step is timed. `EngineProcesses` is this side, `serve` what those processes run.
"""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from provscale.config import Config
from provscale.engine import Engine, build_engine
from provscale.errors import UserError
from provscale.guidance.executors.base import EXECUTORS
from provscale.guidance.step import GuidedStep
from provscale.sample import Sample
from tools.benchmark.cases import ALPHA, LOSSES, Case, build, make_sample

ROOT = Path(__file__).parents[2]
ENGINES = ("one", "ddp", "zero1", "zero2", "zero3", "fsdp2")
"""`one` is a single process without a launcher."""
START_LIMIT = 300
"""Seconds until the processes of an engine must have reported."""
WRONG = 1e-3
"""Relative difference of the weights after one step above which an arm is called wrong."""


OUT_OF_MEMORY = "out of memory"


def arms_of(executor: str) -> list[str]:
    return [*LOSSES, f"plain, {executor}", f"guided, {executor}"]


class BenchmarkStep(GuidedStep):
    """The step module whose inside can be exchanged: this package's, or one of `LOSSES`."""

    arm = ""
    arm_alpha = ALPHA

    def choose(self, arm: str, executors: dict[str, Any]) -> None:
        """Makes the next steps those of `arm`, a name of `arms_of`."""
        self.arm = arm
        if arm not in LOSSES:
            kind, _, name = arm.partition(", ")
            self.arm_alpha = ALPHA if kind == "guided" else 0.0
            self.executor = executors[name]

    def forward(
        self,
        sample: Sample,
        anchor: Tensor | None = None,
        *,
        alpha: float | None = None,
        outputs: frozenset[str] | None = None,
    ) -> dict[str, Tensor]:
        if self.arm not in LOSSES:
            return super().forward(sample, anchor, alpha=self.arm_alpha, outputs=outputs)
        loss = LOSSES[self.arm](self.network, sample, self.autocast_dtype)
        return {"loss": loss if anchor is None else loss + 0 * anchor}


# ---- the processes of one engine ---------------------------------------------------------------------------------
class Server:
    """One process of an engine: builds what a case needs, then runs the steps it is told to.

    Args:
        rate: learning rate of the steps.
    """

    def __init__(self, rate: float = 1e-4) -> None:
        self.rate = rate
        self.engine: Engine | None = None
        self.step: Any = None

    def prepare(self, case: Case, label: str, executor: str, precision: str) -> None:
        from accelerate.state import AcceleratorState, GradientState

        self.engine = self.step = None
        gc.collect()
        AcceleratorState._reset_state()
        GradientState._reset_state()
        config = Config()
        config.data.batch_size = case.batch
        engine = build_engine(config)
        if case.batch % engine.world_size:
            raise UserError(f"benchmark: a batch of {case.batch} cannot be divided over {engine.world_size} processes")
        torch.manual_seed(0)
        self.step = BenchmarkStep(build(case), ALPHA, precision=precision)
        # Eager as well, with which the others are compared.
        self.executors = {name: EXECUTORS[name]() for name in {"eager", executor}}
        engine.prepare(self.step, torch.optim.SGD(self.step.parameters(), lr=self.rate, momentum=0.9))
        engine.prepared.train()
        share = case.batch // engine.world_size
        sample = make_sample(case, label, engine.device)
        self.sample = sample[slice(engine.rank * share, (engine.rank + 1) * share)]
        self.engine = engine

    def run(self, arm: str) -> dict[str, float] | None:
        """One optimizer step; its wall and CPU seconds, or None if memory did not suffice."""
        assert self.engine is not None
        on_cuda = self.engine.device.type == "cuda"
        self.step.choose(arm, self.executors)
        try:
            if on_cuda:
                # The other engines wait on the same device: memory is taken before, and given back after the clock.
                self.whole_step()
                torch.cuda.synchronize()
            wall, cpu = time.perf_counter(), time.process_time()
            self.whole_step()
            if on_cuda:
                torch.cuda.synchronize()
            return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        except torch.cuda.OutOfMemoryError:
            return None
        finally:
            if on_cuda:
                torch.cuda.empty_cache()

    def whole_step(self) -> None:
        engine = self.engine
        assert engine is not None
        with engine.accumulate():
            engine.backward(engine.losses(self.sample)["loss"])
            engine.update()
        engine.average_buffers()

    def parameters(self) -> Tensor:
        """All parameters of the network by name, float64 [number of values]."""
        assert self.engine is not None
        state = self.engine.network_state()
        names = sorted(name for name, _ in self.step.network.named_parameters())
        return torch.cat([state[name].flatten().double() for name in names])

    def change_of(self, arm: str, *arguments: Any) -> Tensor:
        """What one step of `arm` adds to all parameters of a fresh network, float64 [number of values]."""
        self.prepare(*arguments)
        before = self.parameters()
        torch.manual_seed(1)
        self.step.choose(arm, self.executors)
        self.whole_step()
        return self.parameters() - before

    def verdict(self, arm: str, case: Case, label: str, executor: str, precision: str) -> str:
        """Empty if one step of `arm` changes the weights as the eager step of its kind does, else what is wrong."""
        arguments = (case, label, executor, precision)
        expected = self.change_of("plain eager" if arm.startswith("plain") else "guided, eager", *arguments)
        try:
            found = self.change_of(arm, *arguments)
        except Exception as error:  # whatever an engine makes of it
            return f"fails: {type(error).__name__}"
        difference = float((found - expected).norm() / expected.norm())
        return f"wrong by {difference:.0%}" if difference > WRONG else ""


def serve(port: int, server: Any) -> None:
    """Answers `EngineProcesses`, which names a method of `server` and its arguments, until it says stop."""
    torch.set_num_threads(1)
    with Client(("localhost", port), authkey=bytes.fromhex(os.environ["BENCHMARK_KEY"])) as connection:
        while (message := connection.recv()) is not None:
            name, *arguments = message
            try:
                connection.send((True, getattr(server, name)(*arguments)))
            except Exception as error:  # the other side says it in one line and ends all processes
                connection.send((False, f"{type(error).__name__}: {error}".splitlines()[0]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


# ---- this side ---------------------------------------------------------------------------------------------------
class EngineProcesses:
    """The processes of one engine, started and waiting for `call`. To be used in a `with` statement.

    Args:
        name: one of `ENGINES`.
        on_cuda: a process for each GPU; else two.
        words: module that the processes run, and its arguments after the port.

    Raises:
        UserError: they did not start, or an error ended them.
    """

    def __init__(self, name: str, on_cuda: bool, words: Sequence[str] = ("tools.benchmark.engines",)) -> None:
        self.name = name
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in __exit__
        key = secrets.token_bytes(16)
        self.listener = Listener(("localhost", 0), authkey=key)
        command = [sys.executable]
        self.size = 1
        if name != "one":
            self.size = torch.cuda.device_count() if on_cuda else 2
            launch = f"launch/{name}.yaml" if on_cuda else f"launch/cpu/{name}.yaml"
            command += ["-m", "accelerate.commands.launch", "--config_file", launch, "--num_processes", str(self.size)]
        command += ["-m", words[0], str(self.listener.address[1]), *words[1:]]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "BENCHMARK_KEY": key.hex()}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=self.log, stderr=self.log, start_new_session=True
        )
        self.connections: list[Connection] = []

    def connect(self) -> None:
        """Waits until all processes have connected, which they do once everything is imported."""
        deadline = time.monotonic() + START_LIMIT
        self.listener._listener._socket.settimeout(1)  # type: ignore[attr-defined]
        while len(self.connections) < self.size:
            try:
                self.connections.append(self.listener.accept())
            except TimeoutError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise UserError(self.problem("did not start")) from None

    def call(self, *message: Any) -> list[Any]:
        """The answers of all processes."""
        for connection in self.connections:
            connection.send(message)
        answers = []
        for connection in self.connections:
            try:
                fine, answer = connection.recv()
            except (EOFError, ConnectionError):
                raise UserError(self.problem("ended")) from None
            if not fine:
                raise UserError(f"benchmark: engine {self.name}: {answer}")
            answers.append(answer)
        return answers

    def problem(self, what: str) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)  # the launcher says how a process ended
        self.log.seek(0)
        lines = [line for line in self.log.read().splitlines() if line.strip()] or ["no output"]
        return f"benchmark: the processes of engine {self.name} {what}; the last line they wrote: {lines[-1]}"

    def __enter__(self) -> EngineProcesses:
        return self

    def __exit__(self, *details: object) -> None:
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.send(None)
            connection.close()
        self.listener.close()
        try:
            self.process.wait(20 if self.connections else 0)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.log.close()


def run_case(
    processes: Sequence[EngineProcesses], case: Case, label: str, executor: str, precision: str, rounds: int
) -> dict[str, dict[str, list[float] | str]]:
    """Seconds of every counted step, by engine and arm, or a text that says why an arm cannot be used."""
    on_cuda = torch.cuda.is_available()
    arguments = (case, label, executor, precision)
    results: dict[str, dict[str, list[float] | str]] = {}
    for engine in processes:
        mine: dict[str, list[float] | str] = {}
        for arm in arms_of(executor):
            trusted = arm in ("plain eager", "plain, eager", "guided, eager")
            verdict = "" if trusted else engine.call("verdict", arm, *arguments)[0]
            mine[arm] = verdict or []
        engine.call("prepare", *arguments)
        results[engine.name] = mine
    for number in range(rounds + 1):
        for arm in arms_of(executor):
            for engine in processes:
                seconds = results[engine.name][arm]
                if isinstance(seconds, str):
                    continue
                times = engine.call("run", arm)
                if None in times:
                    results[engine.name][arm] = OUT_OF_MEMORY
                elif number:
                    # On a CPU the work of all processes, which other programs disturb little; else the slowest's wait.
                    seconds.append(max(t["wall"] for t in times) if on_cuda else sum(t["cpu"] for t in times))
    return results


if __name__ == "__main__":
    serve(int(sys.argv[1]), Server())
