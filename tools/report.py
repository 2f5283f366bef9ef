"""One self-contained HTML page about one run, or about several side by side (baseline against guided).

python tools/report.py runs/demo-baseline runs/demo-guided --out report.html
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from provscale.errors import UserError, reported


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="report.py", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the page to write")
    options = parser.parse_args(arguments)
    return reported(lambda: write(options.runs, options.out))


def write(runs: list[Path], out: Path) -> None:
    from provscale.run.report import write_report

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_report(out, runs)
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written ({error.strerror}); choose another file") from None
    print(out)


if __name__ == "__main__":
    sys.exit(main())
