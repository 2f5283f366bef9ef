"""The table of edited images, `edits/metadata.csv`: written for any generator's edits, and checked before training.

    file_name,source_file_name,label[,mask_file_name][,object_mask_file_name][,prompt][,...]

Names are relative to the table's folder. An edit has a mask, or a source from which it is made. Columns that are not
known are left alone.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from provscale.data.images.cub_metadata import Report, refuse
from provscale.files import write_atomically


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows with all columns that any of them has, in order of appearance, whole or not at all."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def check_edits(
    table: Path, edits: Sequence[Path | None], sources: Sequence[Path | None], masks: Sequence[Path | None],
    evaluated: Mapping[str, Sequence[Path | None]], report: Report = refuse,
) -> None:  # fmt: skip
    """Looks for edits that must not be trained on.

    Args:
        table: the file that lists them, for messages; row i stands in line i + 2.
        edits, sources, masks: files of each row, as absolute paths.
        evaluated: images of every split that is evaluated, by its name.

    Reported:
        An edit has neither mask nor source, is listed twice, or was made of an image that is evaluated.
    """
    split_of = {path: name for name, paths in evaluated.items() for path in paths}
    line_of: dict[Path | None, int] = {}
    for line, (edit, source, mask) in enumerate(zip(edits, sources, masks, strict=True), start=2):
        where = f"{table}, line {line}"
        if source is None and mask is None:
            report(
                f"{where}: has neither source_file_name nor mask_file_name; an edited image needs a mask or its source"
            )
        if edit in line_of:
            report(f"{where}: lists {edit}, as line {line_of[edit]} does; remove one of them")
        line_of[edit] = line
        if source is not None and source in split_of:
            report(
                f"{where}: is an edit of {source}, an image of the split {split_of[source]}, which training must not "
                "see; remove this row"
            )
