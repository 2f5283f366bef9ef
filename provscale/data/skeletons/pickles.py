"""Pickle files from the net, read as data: a pickle can name any function, so only harmless names are let through.

The annotation files of this field (UCF101-24 ground truth, MMAction2 skeletons) are pickles. Unpickling imports and
calls whatever the file names; here a name outside a fixed list stops the reading before anything is imported.
Method: https://docs.python.org/3/library/pickle.html#restricting-globals.
"""

from __future__ import annotations

import builtins
import collections
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from provscale.errors import UserError

_CONTAINERS = ("list", "tuple", "dict", "set", "frozenset", "bytearray")
_SCALARS = ("str", "int", "float", "bool", "bytes", "complex")
_SHOWN_MODULES = {"posix": "os", "nt": "os", "__builtin__": "builtins"}
_ALLOWED_TEXT = "numpy arrays, scalars and dtypes, Python's containers, str, int, float, bool, bytes"


def _latin1_bytes(text: str, encoding: str = "latin1") -> bytes:
    """Stands in for `codecs.encode`, with which Python 3 writes bytes in protocols 0 to 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as '{encoding}', only latin1 is allowed")
    return text.encode("latin1")


def _allowed_globals() -> dict[tuple[str, str], Any]:
    allowed: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("collections", "defaultdict"): collections.defaultdict,
        ("_codecs", "encode"): _latin1_bytes,
    }
    for module in ("builtins", "__builtin__"):  # Python 3, Python 2
        for name in _CONTAINERS + _SCALARS:
            allowed[module, name] = getattr(builtins, name)
    allowed["__builtin__", "unicode"] = str
    allowed["__builtin__", "long"] = int
    rebuild_array, rebuild_scalar = np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    rebuild_buffer = np.zeros(1).__reduce_ex__(5)[0]
    for core in ("numpy.core", "numpy._core"):  # numpy 1, numpy 2
        allowed[f"{core}.multiarray", "_reconstruct"] = rebuild_array
        allowed[f"{core}.multiarray", "scalar"] = rebuild_scalar
        allowed[f"{core}.numeric", "_frombuffer"] = rebuild_buffer
    allowed["numpy", "ndarray"] = np.ndarray
    allowed["numpy", "dtype"] = np.dtype
    for scalar_type in set(np.sctypeDict.values()):
        if scalar_type is not np.object_:
            allowed["numpy", scalar_type.__name__] = scalar_type
    allowed["numpy", "bool_"] = np.bool_  # numpy 1
    return allowed


_ALLOWED = _allowed_globals()


class _RefusedError(Exception):
    """The file names something that is not data."""


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _RefusedError(f"{_SHOWN_MODULES.get(module, module)}.{name}") from None


def load_pickle(path: str | Path) -> Any:
    """Reads a pickle of arrays and containers without running code from it.

    Strings of Python 2 pickles are decoded as latin1, which also restores their numpy arrays. Modules of numpy 1
    (`numpy.core`) and numpy 2 (`numpy._core`) are both understood.

    Args:
        path: the pickle file, any protocol from 0 to 5.

    Raises:
        UserError: the file is missing, is no readable pickle, or names anything but numpy arrays, scalars and dtypes,
            Python's containers and scalars, OrderedDict and defaultdict; the message gives the refused name, such as
            os.system, and nothing of the file has been imported or called.
    """
    try:
        # numpy warns about dtypes written by very old versions; the values are right.
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _DataUnpickler(file, encoding="latin1").load()
    except _RefusedError as error:
        raise UserError(
            f"{path}: refused, the pickle asks for '{error}'; allowed are {_ALLOWED_TEXT}; it was not run: "
            "get the file from its authors, or save its data as plain arrays"
        ) from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the path of an existing pickle file"
        ) from None
    # A damaged pickle raises almost any exception, from EOFError to TypeError.
    except Exception as error:
        detail = " ".join(str(error).split())[:100]
        raise UserError(
            f"{path}: not a readable pickle ({type(error).__name__}: {detail}); it is damaged or of another format, "
            "fetch it again"
        ) from None
