"""The one exception for a user's mistake: shown as one line, exit code 2, no traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


class UserError(Exception):
    """Wrong input from outside the program.

    The message is one line that names the file or key, the value found, what is allowed and what to do next.
    Entry points print it to standard error and exit with code 2; everything else is a bug and keeps its traceback.
    """


def reported(action: Callable[[], object]) -> int:
    """Runs an entry point's work and says in one line what went wrong outside the program.

    Returns:
        Exit code: 0 = done; 2 = a user's mistake, a disk that cannot be written, or a loader process that died;
        130 = interrupted from the keyboard.
    """
    try:
        action()
    except UserError as error:
        problem = str(error)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        problem = f"{error.filename or 'run.dir'}: cannot be written ({error.strerror}); free space and start again"
    except RuntimeError as error:
        # PyTorch raises this wherever the main process happens to be when a loader process dies.
        if "DataLoader worker" not in str(error):
            raise
        first = str(error).splitlines()[0]
        problem = f"data.workers: {first.rstrip('. ')}; if memory ran out, lower data.workers; start again to resume"
    except KeyboardInterrupt:
        print("provscale: interrupted; start again to resume from the newest checkpoint", file=sys.stderr)
        return 130
    else:
        return 0
    print(f"provscale: {problem}", file=sys.stderr)
    return 2
