"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from provscale.errors import UserError


def sync(path: Path) -> None:
    """Flushes a file's or folder's content to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yields a path to write to; at the end of the block the file is flushed to disk and takes the name `path`.

    So `path` has either its old or its new content. After an exception the new file is gone.
    """
    # A name of its own: several processes may write the same file at once.
    aside = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.new")
    try:
        yield aside
        sync(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Writes a small text file so that it has either its old or its new content."""
    with written_aside(path) as aside:
        aside.write_text(text)


def markdown_table(rows: Sequence[Sequence[str]], rule: Sequence[str] = ()) -> str:
    """A Markdown table without a newline at its end; the first row is the heading.

    Args:
        rule: what stands under the heading, a cell per column, such as `---:` for one aligned to the right.
    """
    heading, *lines = ["| " + " | ".join(row) + " |" for row in rows]
    under = "| " + " | ".join(rule) + " |" if rule else "|" + "---|" * len(rows[0])
    return "\n".join([heading.replace("|  |", "| |"), under, *lines])


def update_document(path: Path, text: str, name: str = "measured") -> None:
    """Replaces what stands between the comments `<!-- NAME -->` and `<!-- /NAME -->` of a Markdown file."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    content = path.read_text()
    if begin not in content or end not in content:
        raise UserError(f"--doc: {path} has no lines '{begin}' and '{end}' to write the table between")
    before, after = content.split(begin)[0], content.split(end)[1]
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")
