"""tools/check_masks.py: what it finds goes to standard output, to be piped."""

from __future__ import annotations

import pytest

from tools.check_masks import show


def test_the_result_is_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """Edits without compression: the difference is nonzero nowhere on the digit, so none of its pixels is lost."""
    show(["--data.name=digits", "--data.options={train: 4, edits: 4, test: 2}", "--synthesis.name=edited"])
    printed = capsys.readouterr()
    assert "4 edited images" in printed.out
    assert "100.0 %" in printed.out
    assert printed.err == ""
