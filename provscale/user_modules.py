"""Modules of one's own, named in the config's `imports`: importing them registers what they define."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from provscale.errors import UserError

_imported: list[str] = []


def imported() -> tuple[str, ...]:
    """What this process has imported so, in order; `import_modules` of it does the same in another process."""
    return tuple(_imported)


def import_modules(names: Sequence[str]) -> None:
    """Imports each module once: the name of an importable module, or the path of a .py file.

    A file becomes a module of its own name, without its folder on the path.

    Raises:
        UserError: no such module or file, a file whose name another module has, or an error while it is imported.
    """
    for name in names:
        is_file = name.endswith(".py")
        entry = str(Path(name).resolve()) if is_file else name
        if entry in _imported:
            continue
        try:
            if is_file:
                import_file(Path(entry))
            else:
                import_named(name)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"imports: {name}: {where(error)}: {described(error)}; correct it") from None
        _imported.append(entry)


def import_named(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only what was asked for is missing, not something that it imports itself.
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise
        raise UserError(
            f"imports: no module named '{name}'; install it or add its folder to PYTHONPATH, or give the path of a "
            ".py file"
        ) from None


def import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"imports: {path} does not exist; give the path of a .py file, or the name of a module")
    other = None if path.stem in sys.modules else importlib.util.find_spec(path.stem)
    if path.stem in sys.modules or (other is not None and other.origin != str(path)):
        raise UserError(f"imports: {path} has the name of another module, '{path.stem}'; rename the file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Under its name, so that what it defines can be pickled.
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


def where(error: Exception) -> str:
    """File and line: of the innermost call in the module itself."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    machinery = (__file__, importlib.__file__)
    outside = [frame for frame in frames if frame.filename not in machinery and "<frozen" not in frame.filename]
    own = [frame for frame in outside if frame.filename == outside[0].filename] or frames
    return f"{own[-1].filename}, line {own[-1].lineno}"


def described(error: Exception) -> str:
    first = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first[0][:200]}".removesuffix(": ")
