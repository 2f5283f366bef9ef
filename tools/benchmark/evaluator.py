"""How long MaxBoxAccV2 (with V1, 1000 score thresholds) takes for a test split of CUB's size.

    python -m tools.benchmark.evaluator                 150 maps of each kind, scaled to 5794 images

Maps are 14 x 14, boxes and images those of 224 x 224 pixels: smooth ones, as a network's, and white noise, which has
the most contours. The clock is CPU time of one thread.
"""

from __future__ import annotations

import argparse
import sys
import time

import cv2
import numpy as np

from provscale.evaluation.maxboxacc import BoxCounts

IMAGES = 5794
BOX = [20, 30, 150, 180]


def seconds_per_image(maps: list[np.ndarray]) -> float:
    counts = BoxCounts()
    started = time.process_time()
    for scoremap in maps:
        counts.accumulate(scoremap, BOX, (224, 224))
    return (time.process_time() - started) / len(maps)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=150)
    count = parser.parse_args(arguments).maps
    cv2.setNumThreads(1)
    generator = np.random.default_rng(0)
    noise = [generator.random((14, 14)) for _ in range(count)]
    smooth = [np.asarray(cv2.GaussianBlur(one, (0, 0), 2.0)) for one in noise]
    kinds: dict[str, list[np.ndarray]] = {"smooth": smooth, "white noise": noise}
    for name, maps in kinds.items():
        each = seconds_per_image(maps)
        print(f"{name}: {1e3 * each:.1f} ms per image, {IMAGES * each:.0f} s for {IMAGES} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
