"""`imports`: modules of one's own are imported once, by name or path, and mistakes in them are named."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from provscale import user_modules
from provscale.command_line import parse
from provscale.errors import UserError
from provscale.synthesis import SYNTHESES, build_synthesis
from provscale.user_modules import import_modules, imported

SYNTHESIS = """
from dataclasses import dataclass
from provscale.synthesis import SYNTHESES, Synthesis

@SYNTHESES.register("{name}")
@dataclass
class Mine(Synthesis):
    strength: float
"""


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests import and register is gone after each."""
    monkeypatch.setattr(user_modules, "_imported", [])
    monkeypatch.setattr(SYNTHESES, "_entries", dict(SYNTHESES._entries))
    for name in ("mine_by_path", "mine_by_name"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    def file(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return file


def test_a_file_registers_its_parts_once(write: Callable[[str, str], Path]) -> None:
    file = write("mine_by_path.py", SYNTHESIS.format(name="mine_by_path"))
    words = [f"--imports=[{file}]", "--synthesis.name=mine_by_path"]
    for _ in range(2):
        config = parse([*words, "--synthesis.options.strength=0.5"])
        assert config.imports == [str(file)]
        assert build_synthesis(config.synthesis).strength == 0.5  # type: ignore[attr-defined]
    assert imported().count(str(file)) == 1
    assert sys.modules["mine_by_path"].Mine is SYNTHESES["mine_by_path"], "where pickle looks for it"
    with pytest.raises(UserError, match=r"^synthesis\.options\.strength: is not set, but mine_by_path needs it;"):
        parse(words)


def test_a_module_by_name(write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    file = write("mine_by_name.py", SYNTHESIS.format(name="mine_by_name"))
    monkeypatch.syspath_prepend(str(file.parent))
    import_modules(["mine_by_name"])
    assert "mine_by_name" in SYNTHESES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def half(x):\n    return 1 / x\n\nhalf(0)\n", "line 2: ZeroDivisionError: division by zero"),
        ("x = 1\nimport surely_not_there\n", "line 2: ModuleNotFoundError: No module named 'surely_not_there'"),
        (
            "a = 1\nif a:\nb = 2\n",
            "line 3: IndentationError: expected an indented block after 'if' statement",
        ),
        ("raise ValueError('one\\ntwo')\n", "line 1: ValueError: one"),
        (SYNTHESIS.format(name="cutmix"), "line 5: AssertionError: synthesis.name: 'cutmix' is registered twice"),
    ],
)
@pytest.mark.parametrize("by_name", [False, True])
def test_errors_in_a_module(write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, content: str,
                            message: str, by_name: bool) -> None:  # fmt: skip
    """One line with the place in the module itself; and nothing of it stays."""
    file = write("broken_parts.py", content)
    monkeypatch.syspath_prepend(str(file.parent))
    name = "broken_parts" if by_name else str(file)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    if not by_name:
        monkeypatch.undo()
    with pytest.raises(UserError) as caught:
        import_modules([name])
    assert str(caught.value).startswith(f"imports: {name}: {file}, {message}")
    assert "\n" not in str(caught.value)
    assert "broken_parts" not in sys.modules
    assert name not in imported()


def test_modules_that_cannot_be_found(write: Callable[[str, str], Path]) -> None:
    for name, message in (
        ("surely_not_there", r"imports: no module named 'surely_not_there'; install it"),
        ("surely_not_there.parts", r"imports: no module named 'surely_not_there.parts'"),
        ("nowhere/parts.py", r"imports: .*nowhere/parts.py does not exist"),
        (str(write("json.py", "")), r"imports: .*json.py has the name of another module, 'json'; rename the file"),
    ):
        with pytest.raises(UserError, match=message):
            import_modules([name])
