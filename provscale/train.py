"""Entry point: trains, or resumes, what a config describes.

accelerate launch provscale/train.py --cfg configs/demo.yaml --guidance.alpha 0.05
provscale-train --cfg demo                  # the same in one process; also `python -m provscale.train`
"""

from __future__ import annotations

import os
import sys

# A script's own folder comes first on Python's path, where `config` or `evaluate` would hide packages of those names.
# So a process started as a script becomes `python -m provscale.train`, with what it was started by (-u, -m pdb, ...).
if __name__ == "__main__" and not globals().get("__package__"):
    os.execv(sys.executable, [*sys.orig_argv[: -len(sys.argv)], "-m", "provscale.train", *sys.argv[1:]])

from provscale.errors import reported
from provscale.run.job import sweep_member, tell_outcome


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 = finished or stopped on request with a checkpoint, 2 = a user's mistake."""

    def train() -> None:
        from provscale.command_line import parse

        config = sweep_member(parse(sys.argv[1:] if arguments is None else arguments))
        # Imported once the config is known to be right: PyTorch takes seconds.
        from provscale.trainer import Trainer

        trainer = Trainer(config)
        tell_outcome("running", config.folder)
        trainer.fit()
        tell_outcome("finished" if trainer.finished else "stopped", config.folder)

    code = reported(train)
    if code == 2:
        tell_outcome("mistake")
    return code


if __name__ == "__main__":
    sys.exit(main())
