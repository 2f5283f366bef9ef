"""Entry point: trains, or resumes, what a config describes.

accelerate launch provscale/train.py --cfg configs/demo.yaml --guidance.alpha 0.05
"""

from __future__ import annotations

import sys
from pathlib import Path

# Started as a script, Python puts this file's folder first on its path, where `data` or `config` would shadow others.
if sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

from provscale.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 = finished or stopped on request with a checkpoint, 2 = a user's mistake."""
    from provscale.command_line import parse

    try:
        config = parse(sys.argv[1:] if arguments is None else arguments)
        from provscale.trainer import Trainer

        Trainer(config).fit()
    except UserError as error:
        print(f"provscale: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
