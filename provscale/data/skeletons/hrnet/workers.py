"""Many videos in several processes."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import torch

from provscale.data.skeletons.hrnet.extract import Extractor, Settings
from provscale.data.skeletons.hrnet.parts import Parts
from provscale.data.skeletons.hrnet.videos import Video
from provscale.errors import UserError


@dataclass
class Outcome:
    """What became of a video: frames and persons, or the `error` for which it was not extracted."""

    video: Video
    frames: int = 0
    persons: int = 0
    error: str | None = None


class Worker:
    """Extracts one video after the other; the networks are loaded with the first."""

    def __init__(self, settings: Settings, parts: Parts, index: int = 0) -> None:
        """`index` of this process chooses the GPU when the device is "cuda" and there are several."""
        self.settings = settings
        self.parts = parts
        self.index = index
        self.extractor: Extractor | None = None

    def __call__(self, video: Video) -> Outcome:
        """Raises UserError when the networks cannot be loaded or the result cannot be written."""
        if self.extractor is None:
            self.extractor = Extractor(self.settings, self._device())
        try:
            clip = self.extractor(video)
        except UserError as error:
            return Outcome(video, error=str(error))
        self.parts.save(clip, video)
        return Outcome(video, clip.keypoints.shape[1], clip.keypoints.shape[0])

    def _device(self) -> torch.device:
        if self.settings.device == "cuda":
            return torch.device("cuda", self.index % max(1, torch.cuda.device_count()))
        return torch.device(self.settings.device)


def run(videos: Sequence[Video], settings: Settings, parts: Parts, workers: int = 1) -> Iterator[Outcome]:
    """Extracts every video, yielding outcomes as they come; one process, or `workers` new ones.

    Raises:
        UserError: as `Worker`; the other processes stop after their current video.
    """
    if workers == 1:
        worker = Worker(settings, parts)
        for video in videos:
            yield worker(video)
        return
    # Forked processes could not use CUDA.
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // workers)
    arguments = (settings, parts, context.Value("i", 0), threads)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=arguments) as pool:
        futures: list[Future[Outcome]] = [pool.submit(_work, video) for video in videos]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise UserError(
                f"--workers: a process was killed, perhaps out of memory; start again with fewer than {workers}"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def progress(outcomes: Iterator[Outcome], total: int, done: int) -> Iterator[tuple[str, Outcome]]:
    """Each outcome with a line about it; frames per second since the first call, loading included.

    Args:
        total: number of all videos.
        done: those of them extracted earlier.
    """
    start, frames = time.perf_counter(), 0
    for outcome in outcomes:
        done += 1
        frames += outcome.frames
        text = f"{outcome.frames} frames, {outcome.persons} persons" if outcome.error is None else outcome.error
        speed = frames / (time.perf_counter() - start)
        yield f"[{done}/{total}] {outcome.video.name}: {text} ({speed:.1f} frames/s)", outcome


_worker: Worker | None = None


def _start(settings: Settings, parts: Parts, counter: Any, threads: int) -> None:
    global _worker
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    with counter.get_lock():
        index = counter.value
        counter.value += 1
    _worker = Worker(settings, parts, index)


def _work(video: Video) -> Outcome:
    assert _worker is not None
    return _worker(video)
