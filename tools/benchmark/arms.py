"""What a step of a config's training costs, for several command lines in one run: CPU time and peak memory.

The step is the trainer's: forward pass, losses and gradients of one batch, with the eager executor, one thread.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import torch

from provscale.build import build_data, build_network, build_step, build_training_data
from provscale.command_line import parse
from provscale.data.loader import make_loader
from tools.benchmark.memory import peak_of_run
from tools.benchmark.timing import measure, step_arm


def build_arm(words: Sequence[str]) -> Callable[[], None]:
    """One step of what a command line trains, on the CPU, on the last batch of its training items: edits alone, where
    there are enough, so that the cost does not depend on how many a batch draws."""
    config = parse([*words, "--guidance.executor", "eager"])
    data = build_training_data(config, build_data(config))
    step = build_step(config, build_network(config, data.items.num_classes), data)
    batch = range(len(data.items) - config.data.batch_size, len(data.items))  # edits come last
    (loaded,) = make_loader(data.items, [[(0, index) for index in batch]], 0, False)
    sample = data.synthesis(loaded.to("cpu"), None, (config.seed, 0))
    return step_arm(step.train(), sample, config.guidance.alpha)


def peak_of_arm(words: Sequence[str]) -> float:
    """MiB; to be called in a fresh process."""
    torch.set_num_threads(1)
    return peak_of_run(lambda: build_arm(words), torch.device("cpu"))


def costs(arms: dict[str, Sequence[str]], rounds: int = 20) -> dict[str, tuple[float, float]]:
    """Of each arm: CPU time of a step over that of the first arm (medians of `rounds`, in turns); peak memory, MiB."""
    torch.set_num_threads(1)
    times = measure({name: build_arm(words) for name, words in arms.items()}, rounds, torch.device("cpu"))
    first = next(iter(times.values()))
    peaks = {}
    for name, words in arms.items():
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            peaks[name] = pool.submit(peak_of_arm, list(words)).result()
    return {name: (time.median / first.median, peaks[name]) for name, time in times.items()}  # type: ignore[union-attr]
