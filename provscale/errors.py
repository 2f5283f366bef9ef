"""The one exception for a user's mistake: shown as one line, exit code 2, no traceback."""

from __future__ import annotations


class UserError(Exception):
    """Wrong input from outside the program.

    The message is one line that names the file or key, the value found, what is allowed and what to do next.
    Entry points print it to standard error and exit with code 2; everything else is a bug and keeps its traceback.
    """
