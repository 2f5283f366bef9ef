"""Skeletons of videos by MMPose's HRNet-W32, in the pickle format of MMAction2.

    python tools/extract_skeletons.py UCF101_v2/rgb-images --out skeletons.pkl --weights HRNET.pth \
        --detector-weights FASTERRCNN.pth --testlist testlist01.txt --device cuda --workers 4

Needs OpenMMLab: bash tools/install_openmmlab.sh. Interrupted, the same command goes on where it stopped: each video's
result is kept in FILE.pkl.parts. See docs/extraction.md.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from provscale.data.skeletons.clips import write_skeletons
from provscale.data.skeletons.hrnet.extract import Settings
from provscale.data.skeletons.hrnet.parts import Parts
from provscale.data.skeletons.hrnet.videos import Video, find_videos
from provscale.data.skeletons.hrnet.workers import progress, run
from provscale.data.skeletons.tubes import read_testlist
from provscale.errors import UserError
from provscale.openmmlab import require_openmmlab


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("videos", nargs="+", metavar="VIDEO_OR_FRAMES_DIR", help="video, folder of 00001.jpg ..., or a folder of these")
    add("--out", type=Path, required=True, metavar="FILE.pkl", help="result")
    add("--weights", type=Path, required=True, metavar="HRNET.pth", help="HRNet checkpoint of MMPose, a local file")
    add("--detector-weights", type=Path, metavar="FASTERRCNN.pth", help="Faster R-CNN checkpoint of torchvision")
    add("--boxes", type=Path, help="instead of the detector: .json of boxes, or UCF101-24's ground truth (.pkl)")
    add("--min-score", type=float, default=0.5, help="least detector score of a person (default 0.5)")
    add("--no-flip", action="store_true", help="do not average with the mirrored crop: half the time")
    add("--testlist", type=Path, help="videos of the test split; written as splits 'test1' and 'train1'")
    add("--action", metavar="CLASS", help="class of videos whose name and folder give none")
    add("--device", default="cpu", help="cpu, cuda (workers take turns on all GPUs) or cuda:0 (default cpu)")
    add("--workers", type=int, default=1, help="processes (default 1)")
    add("--batch-size", type=int, default=16, help="frames or crops that run together (default 16)")
    return result


def splits_of(videos: Sequence[Video], testlist: Path | None) -> dict[str, list[str]]:
    if testlist is None:
        return {}
    test = set(read_testlist(testlist))
    names = [video.name for video in videos]
    return {"train1": [n for n in names if n not in test], "test1": [n for n in names if n in test]}


def extract(arguments: argparse.Namespace) -> None:
    """Runs the tool. Raises UserError; videos extracted until then are kept."""
    require_openmmlab("tools/extract_skeletons.py")
    settings = Settings(
        weights=arguments.weights, detector_weights=arguments.detector_weights, boxes=arguments.boxes,
        flip=not arguments.no_flip, min_score=arguments.min_score, device=arguments.device,
        batch_size=arguments.batch_size,
    )  # fmt: skip
    settings.check()
    if arguments.workers < 1:
        raise UserError(f"--workers: is {arguments.workers}, must be at least 1")
    check_device(arguments.device)
    videos = find_videos(arguments.videos, arguments.action)
    splits = splits_of(videos, arguments.testlist)
    parts = Parts(arguments.out.with_name(f"{arguments.out.name}.parts"), settings.fingerprint())
    open_videos = [video for video in videos if not parts.done(video)]
    failures = []
    outcomes = run(open_videos, settings, parts, min(arguments.workers, max(1, len(open_videos))))
    for line, outcome in progress(outcomes, len(videos), len(videos) - len(open_videos)):
        print(line, flush=True)
        if outcome.error is not None:
            failures.append(outcome.error)
    if failures:
        raise UserError(
            f"{arguments.out} was not written: {len(failures)} of {len(videos)} videos failed, the others are kept; "
            f"first: {failures[0]}"
        )
    clips = [parts.load(video) for video in videos]
    write_skeletons(arguments.out, clips, splits)
    if empty := [clip.name for clip in clips if not clip.keypoints.shape[0]]:
        shown = ", ".join(empty[:3]) + (", ..." if len(empty) > 3 else "")
        warnings.warn(f"nobody was found in {len(empty)} videos, kept without persons: {shown}", stacklevel=1)
    print(f"{arguments.out}: {len(clips)} videos, {sum(clip.keypoints.shape[1] for clip in clips)} frames")


def check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device: unknown '{name}'; allowed are cpu, cuda and cuda:0, cuda:1, ...") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device: {name}, but PyTorch sees {torch.cuda.device_count()} GPUs; use cpu or another index"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after a user's mistake, told in one line."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        try:
            extract(parser().parse_args(arguments))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
