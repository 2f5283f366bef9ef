"""metadata.csv of an image folder: its rows, and its cells as text or numbers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from provscale.errors import UserError


def read_table(metadata: Path) -> list[dict[str, Any]]:
    """The rows of a metadata.csv. Raises UserError: no such file, no CSV, a column is missing, or no row."""
    # Imported here: it takes seconds, and no other data set needs it.
    import datasets

    if not metadata.is_file():
        raise UserError(f"data.root: {metadata} does not exist; it must list file_name and label of every image")
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # the error below says it all
    try:
        with tempfile.TemporaryDirectory() as cache:
            table = datasets.Dataset.from_csv(str(metadata), cache_dir=cache, keep_in_memory=True)
    except Exception as error:  # the csv reader's errors come in many types
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        if metadata.stat().st_size == 0 or "EmptyDataError" in repr(error) or "No columns" in reason[0]:
            raise UserError(f"{metadata}: is empty; it must list file_name and label of every image") from None
        if "no data" in reason[0]:
            raise UserError(f"{metadata}: lists no image; the data set is empty") from None
        raise UserError(f"{metadata}: cannot be read as CSV ({reason[0][:160]}); repair this file") from None
    for column in ("file_name", "label"):
        if column not in table.column_names:
            raise UserError(
                f"{metadata}: has no column '{column}' (found: {', '.join(table.column_names)}); add it to the first "
                "line and to every row"
            )
    return table.to_list()


def written(value: Any) -> str:
    """A cell as it stands in the table; "" for an empty one."""
    return "" if value is None or value != value else str(value)


def as_number(value: Any) -> float | None:
    """A cell as a number; None if it is none, or empty.

    One empty cell makes the csv reader give the whole column as floats, and one word the whole column as text.
    """
    try:
        found = float("" if isinstance(value, bool) or value is None else value)
    except ValueError:
        return None
    return found if found == found else None
